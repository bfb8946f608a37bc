//! The nodes that a domain has before any device, with the permissions that libxl gives them.

use xs_client::{Access, Client, DomId, Error, Path, Permissions};

/// Domain 0's own nodes.
pub async fn create_domain0(client: &Client) -> Result<(), Error> {
    let home = Path::new("/local/domain/0")?;
    client.write(&home.join("domid")?, "0").await?;
    client.write(&home.join("name")?, "Domain-0").await?;
    client.mkdir(&home.join("backend")?).await
}

/// A PV guest's nodes, as far as devices need them. The store must know the domain already, or
/// it refuses it as an owner.
pub async fn create_domain(client: &Client, domid: DomId, name: &str) -> Result<(), Error> {
    let readable = Permissions::owned_by(DomId::DOM0, Access::None).grant(domid, Access::Read);
    let home = Path::new(format!("/local/domain/{domid}"))?;
    client.mkdir(&home).await?;
    client.set_perms(&home, readable).await?;
    client.write(&home.join("name")?, name.to_owned()).await?;
    client.write(&home.join("domid")?, domid.to_string()).await?;
    client.mkdir(&home.join("device")?).await?;
    for node in ["control/shutdown", "data", "drivers", "feature", "attr", "error"] {
        let node = home.join(node)?;
        client.mkdir(&node).await?;
        client.set_perms(&node, Permissions::owned_by(domid, Access::None)).await?;
    }
    let toolstack = Path::new(format!("/libxl/{domid}"))?;
    client.mkdir(&toolstack.join("device")?).await?;
    client.write(&toolstack.join("type")?, "pv").await
}
