/*
 * The workloads of README.md over libxenstore, with the calls that libxl makes: one request at a
 * time, and poll with xs_check_watch for events.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#include <xenstore.h>

static int settings;
static char **setting;

static void fail(const char *format, ...)
{
	int error = errno;
	va_list args;

	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fprintf(stderr, ": %s\n", strerror(error));
	exit(1);
}

static const char *text(const char *key)
{
	size_t len = strlen(key);

	for (int i = 0; i < settings; i++)
		if (!strncmp(setting[i], key, len) && setting[i][len] == '=')
			return setting[i] + len + 1;
	errno = EINVAL;
	fail("%s= is missing", key);
	return NULL;
}

static size_t number(const char *key)
{
	return strtoul(text(key), NULL, 10);
}

static void *allocated(size_t count, size_t size)
{
	void *memory = calloc(count + 1, size);

	if (!memory)
		fail("allocating");
	return memory;
}

/* Microseconds. */
static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1e6 + time.tv_nsec / 1e3;
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

/* The first tenth does not count. */
static void print_latencies(double *samples, size_t count)
{
	size_t warm_up = count / 10, counted = count - warm_up;

	if (!counted)
		fail("count= is 0");
	qsort(samples += warm_up, counted, sizeof(*samples), compare);
	printf("{\"median_us\": %f, \"p99_us\": %f}\n", samples[(counted - 1) / 2],
	       samples[(counted - 1) * 99 / 100]);
}

static struct xs_handle *store(void)
{
	struct xs_handle *handle;

	setenv("XENSTORED_PATH", text("socket"), 1);
	handle = xs_open(0);
	if (!handle)
		fail("connecting to %s", text("socket"));
	return handle;
}

static void watch(struct xs_handle *handle, const char *path, const char *token)
{
	if (!xs_watch(handle, path, token))
		fail("watching %s", path);
}

/* The next event, as a vector that the caller frees. */
static char **event(struct xs_handle *handle)
{
	struct pollfd fd = { .fd = xs_fileno(handle), .events = POLLIN };
	char **found;

	while (!(found = xs_check_watch(handle))) {
		if (errno != EAGAIN)
			fail("waiting for an event");
		poll(&fd, 1, -1);
	}
	return found;
}

static void take_events(struct xs_handle *handle, size_t count)
{
	while (count--)
		free(event(handle));
}

/* Watches the nodes, and takes the first event of each. */
static void watch_nodes(struct xs_handle *handle, char **nodes, size_t count)
{
	char token[24];

	for (size_t i = 0; i < count; i++) {
		snprintf(token, sizeof(token), "%zu", i);
		watch(handle, nodes[i], token);
	}
	take_events(handle, count);
}

static char **watched(size_t count)
{
	char **nodes = allocated(count, sizeof(*nodes));

	for (size_t i = 0; i < count; i++)
		if (asprintf(&nodes[i], "%s/%zu/0/state", text("below"), i) < 0)
			fail("allocating");
	return nodes;
}

static void run_read(void)
{
	struct xs_handle *handle = store();
	size_t count = number("count");
	double *samples = allocated(count, sizeof(*samples));
	unsigned int len;

	for (size_t i = 0; i < count; i++) {
		double begun = now();
		void *value = xs_read(handle, XBT_NULL, text("node"), &len);

		if (!value)
			fail("reading %s", text("node"));
		free(value);
		samples[i] = now() - begun;
	}
	print_latencies(samples, count);
}

static void run_transaction(void)
{
	struct xs_handle *handle = store();
	size_t count = number("count");
	double *samples = allocated(count, sizeof(*samples));
	char *nodes[8];

	for (int key = 0; key < 8; key++)
		if (asprintf(&nodes[key], "%s/key%d", text("below"), key) < 0)
			fail("allocating");
	for (size_t i = 0; i < count; i++) {
		double begun = now();
		xs_transaction_t transaction = xs_transaction_start(handle);

		if (!transaction)
			fail("starting a transaction");
		for (int key = 0; key < 8; key++)
			if (!xs_write(handle, transaction, nodes[key], "0123456789abcdef", 16))
				fail("writing %s", nodes[key]);
		if (!xs_transaction_end(handle, transaction, false))
			fail("committing");
		samples[i] = now() - begun;
	}
	print_latencies(samples, count);
}

static long resident_kib(void)
{
	FILE *file = fopen("/proc/self/status", "r");
	char line[256];
	long kib = -1;

	while (file && fgets(line, sizeof(line), file))
		if (sscanf(line, "VmRSS: %ld", &kib) == 1)
			break;
	if (!file || kib < 0)
		fail("reading /proc/self/status");
	fclose(file);
	return kib;
}

static void run_watch(void)
{
	struct xs_handle *handle = store();
	size_t count = number("nodes");
	char **nodes = watched(count);
	long before;
	double begun, took;

	watch(handle, "/warm", "warm");
	take_events(handle, 1);
	before = resident_kib();
	begun = now();
	watch_nodes(handle, nodes, count);
	took = now() - begun;
	printf("{\"us_each\": %f, \"kib\": %ld}\n", took / count, resident_kib() - before);
}

static void run_events(void)
{
	struct xs_handle *handle = store();
	size_t count = number("nodes"), told = 0;
	double begun;
	int ended = 0;

	watch_nodes(handle, watched(count), count);
	watch(handle, text("end"), "end");
	take_events(handle, 1);
	puts("ready");
	fflush(stdout);
	for (begun = now(); !ended;) {
		char **one = event(handle);

		ended = !strcmp(one[XS_WATCH_TOKEN], "end");
		told += !ended;
		free(one);
	}
	printf("{\"seconds\": %f, \"told\": %zu}\n", (now() - begun) / 1e6, told);
}

/* A plain connection, and a request to write to the node. */
static int writer(char *request, size_t size, size_t *len)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	const char *node = text("node");
	uint32_t header[4] = { XS_WRITE, 1, 0, strlen(node) + 2 };
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	*len = sizeof(header) + header[3];
	errno = ENAMETOOLONG;
	if (*len > size || strlen(text("socket")) >= sizeof(address.sun_path))
		fail("addressing %s", node);
	memcpy(request, header, sizeof(header));
	strcpy(request + sizeof(header), node);
	request[*len - 1] = '4';
	strcpy(address.sun_path, text("socket"));
	if (fd < 0 || connect(fd, (void *)&address, sizeof(address)))
		fail("connecting to %s", address.sun_path);
	return fd;
}

static void run_fanout(void)
{
	struct xs_handle *handle = store();
	size_t count = number("count"), watchers = number("watchers"), len;
	double *samples = allocated(count, sizeof(*samples));
	char **nodes = allocated(watchers, sizeof(*nodes)), request[512], reply[16 + 3];
	int fd = writer(request, sizeof(request), &len);

	for (size_t i = 0; i < watchers; i++)
		nodes[i] = (char *)text("node");
	watch_nodes(handle, nodes, watchers);
	for (size_t i = 0; i < count; i++) {
		double begun = now();

		if (write(fd, request, len) != (ssize_t)len)
			fail("writing");
		take_events(handle, watchers);
		samples[i] = now() - begun;
		if (recv(fd, reply, sizeof(reply), MSG_WAITALL) != sizeof(reply) ||
		    strcmp(reply + 16, "OK"))
			fail("waiting for the reply to a write");
	}
	print_latencies(samples, count);
}

int main(int argc, char **argv)
{
	static const struct { const char *name; void (*run)(void); } workloads[] = {
		{ "read", run_read }, { "transaction", run_transaction }, { "watch", run_watch },
		{ "events", run_events }, { "fanout", run_fanout },
	};

	settings = argc > 2 ? argc - 2 : 0;
	setting = argv + 2;
	for (size_t i = 0; argc > 1 && i < sizeof(workloads) / sizeof(*workloads); i++)
		if (!strcmp(argv[1], workloads[i].name)) {
			workloads[i].run();
			return 0;
		}
	fprintf(stderr, "there is no such workload\n");
	return 1;
}
