/*
 * The lives of disks over libxenstore, with the calls that libxl makes: add, wait for the backend to connect,
 * close, wait for it to close, remove the trees with the parents that they leave empty. One request at a time,
 * a READ after each event.
 *
 *     libxl socket=PATH disks=N target=PATH
 *
 * Prints microseconds and requests a disk as one line of JSON.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <xenstore.h>

#define PER_DOMAIN 10
#define PATH 256

static struct xs_handle *store;
static int *states;
static size_t disks, requests, retries;
static const char *target;

static void fail(const char *what, const char *path)
{
	fprintf(stderr, "%s %s: %s\n", what, path, strerror(errno));
	exit(1);
}

static const char *setting(int argc, char **argv, const char *key)
{
	size_t len = strlen(key);

	for (int i = 1; i < argc; i++)
		if (!strncmp(argv[i], key, len) && argv[i][len] == '=')
			return argv[i] + len + 1;
	errno = EINVAL;
	fail("missing setting", key);
	return NULL;
}

/* Microseconds. */
static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1e6 + time.tv_nsec / 1e3;
}

static int domid(size_t disk) { return 1 + disk / PER_DOMAIN; }
static int devid(size_t disk) { return 51712 + 16 * (disk % PER_DOMAIN); }

static void frontend(char *path, size_t disk)
{
	snprintf(path, PATH, "/local/domain/%d/device/vbd/%d", domid(disk), devid(disk));
}

static void backend(char *path, size_t disk)
{
	snprintf(path, PATH, "/local/domain/0/backend/vbd/%d/%d", domid(disk), devid(disk));
}

static void recorded(char *path, size_t disk)
{
	snprintf(path, PATH, "/libxl/%d/device/vbd/%d", domid(disk), devid(disk));
}

static xs_transaction_t begin(void)
{
	xs_transaction_t transaction = xs_transaction_start(store);

	requests++;
	if (!transaction)
		fail("starting", "a transaction");
	return transaction;
}

/* Whether it was committed, and did not conflict. */
static bool commit(xs_transaction_t transaction)
{
	requests++;
	if (xs_transaction_end(store, transaction, false))
		return true;
	if (errno != EAGAIN)
		fail("committing", "a transaction");
	retries++;
	return false;
}

static void put(xs_transaction_t t, const char *directory, const char *key, const char *value)
{
	char path[2 * PATH];

	snprintf(path, sizeof(path), "%s/%s", directory, key);
	requests++;
	if (!xs_write(store, t, path, value, strlen(value)))
		fail("writing", path);
}

static void permit(xs_transaction_t t, const char *directory, const char *key, int owner, int reader)
{
	struct xs_permissions perms[2] = {
		{ .id = owner, .perms = XS_PERM_NONE }, { .id = reader, .perms = XS_PERM_READ },
	};
	char path[2 * PATH];

	snprintf(path, sizeof(path), "%s%s%s", directory, *key ? "/" : "", key);
	requests++;
	if (!xs_set_permissions(store, t, path, perms, 2))
		fail("setting the permissions of", path);
}

static void make(xs_transaction_t t, const char *path, int owner, int reader)
{
	requests += 2;
	if (!xs_rm(store, t, path) && errno != ENOENT)
		fail("removing", path);
	if (!xs_mkdir(store, t, path))
		fail("making", path);
	permit(t, path, "", owner, reader);
}

/* The value of a node, or NULL if there is none. */
static char *value(xs_transaction_t t, const char *path, unsigned int *len)
{
	char *found = xs_read(store, t, path, len);

	requests++;
	if (!found && errno != ENOENT)
		fail("reading", path);
	return found;
}

static void watch(size_t disk, bool on)
{
	char path[PATH], state[PATH + 8], token[24];

	backend(path, disk);
	snprintf(state, sizeof(state), "%s/state", path);
	snprintf(token, sizeof(token), "%zu", disk);
	requests++;
	if (!(on ? xs_watch(store, state, token) : xs_unwatch(store, state, token)))
		fail("watching", state);
}

static void add(size_t disk)
{
	char fe[PATH], be[PATH], lx[PATH], dom[24], dev[24], vdev[8];
	int guest = domid(disk);
	xs_transaction_t t;

	frontend(fe, disk);
	backend(be, disk);
	recorded(lx, disk);
	snprintf(dom, sizeof(dom), "%d", guest);
	snprintf(dev, sizeof(dev), "%d", devid(disk));
	snprintf(vdev, sizeof(vdev), "xvd%c", (char)('a' + disk % PER_DOMAIN));
	const char *fe_keys[][2] = {
		{ "backend-id", "0" }, { "state", "1" }, { "virtual-device", dev }, { "device-type", "disk" },
		{ "trusted", "1" },
	};
	const char *be_keys[][2] = {
		{ "params", target }, { "script", "/etc/xen/scripts/block" }, { "frontend-id", dom }, { "online", "1" },
		{ "removable", "0" }, { "bootable", "1" }, { "state", "1" }, { "dev", vdev }, { "type", "phy" },
		{ "mode", "w" }, { "device-type", "disk" }, { "discard-enable", "1" }, { "specification", "xen" },
	};
	do {
		unsigned int len;

		t = begin();
		free(value(t, lx, &len));
		requests++;
		if (!xs_rm(store, t, lx) && errno != ENOENT)
			fail("removing", lx);
		put(t, lx, "frontend", fe);
		put(t, lx, "backend", be);
		make(t, fe, guest, 0);
		put(t, fe, "backend", be);
		for (size_t i = 0; i < sizeof(fe_keys) / sizeof(*fe_keys); i++) {
			put(t, fe, fe_keys[i][0], fe_keys[i][1]);
			permit(t, fe, fe_keys[i][0], guest, 0);
		}
		make(t, be, 0, guest);
		put(t, be, "frontend", fe);
		for (size_t i = 0; i < sizeof(be_keys) / sizeof(*be_keys); i++)
			put(t, be, be_keys[i][0], be_keys[i][1]);
		for (size_t i = 0; i < sizeof(be_keys) / sizeof(*be_keys); i++)
			put(t, lx, be_keys[i][0], be_keys[i][1]);
	} while (!commit(t));
	watch(disk, true);
}

static void close_disk(size_t disk)
{
	char be[PATH], state[PATH + 8];
	unsigned int len;
	xs_transaction_t t;

	backend(be, disk);
	snprintf(state, sizeof(state), "%s/state", be);
	do {
		t = begin();
		free(value(t, state, &len));
		put(t, be, "online", "0");
		put(t, be, "state", "5");
	} while (!commit(t));
}

/* Removes a tree, and those above it that are empty then. */
static void clean(xs_transaction_t t, char *path)
{
	char *slash;

	requests++;
	if (!xs_rm(store, t, path) && errno != ENOENT)
		fail("removing", path);
	while ((slash = strrchr(path, '/')) && slash != path) {
		unsigned int len;
		char *found, **names;
		bool empty;

		*slash = 0;
		found = value(t, path, &len);
		empty = found && !len;
		free(found);
		if (!empty)
			break;
		requests++;
		names = xs_directory(store, t, path, &len);
		empty = names && !len;
		free(names);
		if (!empty)
			break;
		requests++;
		if (!xs_rm(store, t, path))
			fail("removing", path);
	}
}

static void destroy(size_t disk)
{
	char path[PATH];
	xs_transaction_t t;

	watch(disk, false);
	do {
		t = begin();
		frontend(path, disk);
		clean(t, path);
		recorded(path, disk);
		clean(t, path);
		backend(path, disk);
		clean(t, path);
	} while (!commit(t));
}

/* Takes events until the backends of all disks have come so far. */
static void all_reach(int state)
{
	struct pollfd fd = { .fd = xs_fileno(store), .events = POLLIN };

	for (size_t disk = 0; disk < disks; disk++)
		while (states[disk] < state) {
			char **event = xs_check_watch(store), *found;
			unsigned int len;
			size_t of;

			if (!event) {
				if (errno != EAGAIN)
					fail("waiting for", "an event");
				poll(&fd, 1, -1);
				continue;
			}
			of = strtoul(event[XS_WATCH_TOKEN], NULL, 10);
			found = value(XBT_NULL, event[XS_WATCH_PATH], &len);
			if (found && of < disks && atoi(found) > states[of])
				states[of] = atoi(found);
			free(found);
			free(event);
		}
}

int main(int argc, char **argv)
{
	double begun, attached, ended;

	setenv("XENSTORED_PATH", setting(argc, argv, "socket"), 1);
	target = setting(argc, argv, "target");
	disks = strtoul(setting(argc, argv, "disks"), NULL, 10);
	states = calloc(disks + 1, sizeof(*states));
	store = xs_open(0);
	if (!store || !states)
		fail("connecting to", setting(argc, argv, "socket"));
	/* Drivers that do not answer end it. */
	alarm(120);
	begun = now();
	for (size_t disk = 0; disk < disks; disk++)
		add(disk);
	all_reach(4);
	attached = now();
	for (size_t disk = 0; disk < disks; disk++)
		close_disk(disk);
	all_reach(6);
	for (size_t disk = 0; disk < disks; disk++)
		destroy(disk);
	ended = now();
	printf("{\"us_each\": %f, \"attach_us\": %f, \"detach_us\": %f, \"requests_each\": %f, \"retries\": %zu}\n",
	       (ended - begun) / disks, (attached - begun) / disks, (ended - attached) / disks,
	       (double)requests / disks, retries);
	return 0;
}
