/*
 * What libxlutil makes of disk specifications and of rates.
 *
 * A request on standard input is a letter (d for a disk, r for a rate), the number of arguments, and each
 * argument with its length before it; numbers are four bytes in the machine's order. The answer is a line: "+"
 * and the disk as libxl's JSON, or "+" and BYTES,MICROSECONDS, or "-" and the message.
 */
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <libxl.h>
#include <libxlutil.h>
#include <yajl/yajl_gen.h>
#include <_libxl_types_json.h>

static void must_read(void *to, size_t length)
{
    if (length && fread(to, length, 1, stdin) != 1)
        exit(1);
}

static void disk(XLU_Config *config, int count, const char *const *arguments)
{
    const unsigned char *text;
    size_t length;
    libxl_device_disk disk;
    yajl_gen json;

    libxl_device_disk_init(&disk);
    if (xlu_disk_parse(config, count, arguments, &disk) == 0) {
        json = yajl_gen_alloc(NULL);
        libxl_device_disk_gen_json(json, &disk);
        yajl_gen_get_buf(json, &text, &length);
        printf("+%.*s\n", (int)length, text);
        yajl_gen_free(json);
    } else {
        printf("-\n");
    }
    libxl_device_disk_dispose(&disk);
}

static void rate(XLU_Config *config, const char *argument)
{
    libxl_device_nic nic;

    libxl_device_nic_init(&nic);
    errno = 0; /* it takes an earlier error for one of its own */
    if (xlu_vif_parse_rate(config, argument, &nic) == 0)
        printf("+%llu,%lu\n", (unsigned long long)nic.rate_bytes_per_interval,
               (unsigned long)nic.rate_interval_usecs);
    else
        printf("-\n");
    libxl_device_nic_dispose(&nic);
}

int main(void)
{
    FILE *nowhere = fopen("/dev/null", "w");
    XLU_Config *config = nowhere ? xlu_cfg_init(nowhere, "oracle") : NULL;
    int kind;

    if (!config)
        return 1;
    while ((kind = getchar()) != EOF) {
        uint32_t count, length, i;
        char **arguments;

        must_read(&count, sizeof count);
        arguments = calloc(count + 1, sizeof *arguments);
        for (i = 0; i < count; i++) {
            must_read(&length, sizeof length);
            arguments[i] = calloc(length + 1, 1);
            must_read(arguments[i], length);
        }
        if (kind == 'd')
            disk(config, count, (const char *const *)arguments);
        else
            rate(config, arguments[0]);
        fflush(stdout); /* the lexer may end the process next */
        for (i = 0; i < count; i++)
            free(arguments[i]);
        free(arguments);
    }
    return 0;
}
