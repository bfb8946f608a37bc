/*
 * What libxlutil makes of disk specifications, of rates, and of configuration files.
 *
 * A request on standard input is a letter (d for a disk, r for a rate, c for a configuration file), the number of
 * arguments, and each argument with its length before it; numbers are four bytes in the machine's order. The answer
 * is a line: "+" and the disk as libxl's JSON, or "+" and BYTES,MICROSECONDS, or "-" and the message. The arguments
 * of a file are its text and names of settings, and the answer is "+" and each of these that is there, with its
 * value: a text as its bytes in hexadecimal after an apostrophe, a list in brackets.
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

static void value(const XLU_Config *config, XLU_ConfigValue *what)
{
    XLU_ConfigList *list;
    XLU_ConfigValue *element;
    char *text;
    int i;

    if (xlu_cfg_value_type(what) == XLU_STRING) {
        xlu_cfg_value_get_string(config, what, &text, 1);
        for (putchar('\''); *text; text++)
            printf("%02x", (unsigned char)*text);
        return;
    }
    xlu_cfg_value_get_list(config, what, &list, 1);
    putchar('[');
    for (i = 0; (element = xlu_cfg_get_listitem2(list, i)); i++) {
        value(config, element);
        putchar(',');
    }
    putchar(']');
}

static void file(FILE *nowhere, int count, char **arguments, size_t length)
{
    XLU_Config *config = xlu_cfg_init(nowhere, "oracle");
    const char *text;
    XLU_ConfigList *list;
    XLU_ConfigValue *element;
    int i, at;

    if (xlu_cfg_readdata(config, arguments[0], length)) {
        printf("-\n"); /* the handle cannot be used any more */
        xlu_cfg_destroy(config);
        return;
    }
    putchar('+');
    for (i = 1; i < count; i++) {
        if (!xlu_cfg_get_list(config, arguments[i], &list, NULL, 1)) {
            printf("%s=[", arguments[i]);
            for (at = 0; (element = xlu_cfg_get_listitem2(list, at)); at++) {
                value(config, element);
                putchar(',');
            }
            printf("];");
        } else if (!xlu_cfg_get_string(config, arguments[i], &text, 1)) {
            printf("%s='", arguments[i]);
            for (; *text; text++)
                printf("%02x", (unsigned char)*text);
            putchar(';');
        }
    }
    putchar('\n');
    xlu_cfg_destroy(config);
}

int main(void)
{
    FILE *nowhere = fopen("/dev/null", "w");
    XLU_Config *config = nowhere ? xlu_cfg_init(nowhere, "oracle") : NULL;
    int kind;

    if (!config)
        return 1;
    while ((kind = getchar()) != EOF) {
        uint32_t count, length, first = 0, i;
        char **arguments;

        must_read(&count, sizeof count);
        arguments = calloc(count + 1, sizeof *arguments);
        for (i = 0; i < count; i++) {
            must_read(&length, sizeof length);
            arguments[i] = calloc(length + 1, 1);
            must_read(arguments[i], length);
            if (i == 0)
                first = length;
        }
        if (kind == 'd')
            disk(config, count, (const char *const *)arguments);
        else if (kind == 'c')
            file(nowhere, count, arguments, first);
        else
            rate(config, arguments[0]);
        fflush(stdout); /* the lexer may end the process next */
        for (i = 0; i < count; i++)
            free(arguments[i]);
        free(arguments);
    }
    return 0;
}
