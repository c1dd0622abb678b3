/* A room of clients that boot at once: each with its own MAC, from DISCOVER to running, every byte
   of every reply compared. One thread, so that what it costs is one number.

   storm program=PATH clients=N target=MAC server=IP files=DIR boot=PATH root=PATH config=PATH
         [interface=eth0] [mtu=1500] [mode=all|reads] [think=0] [spread=0] [limit=120]
         [devices=27] [config_shelf=0] [first=0] [nbd=0]

   program: what bench/trace.py makes of a recorded boot. mode=reads: a server that can only read
   (the floor): boot and root lie behind each other in its one image. think: factor for the times
   that the recorded client computed. spread: seconds over which the clients are switched on.
   devices: bits of the slots that a client waits for. config_shelf: each client's /config is at
   config_shelf + n / 240, n % 240 instead of at slot 3. nbd: port of a server that has `root` and
   `config-N` by NBD. timeouts=1: reads microseconds from its input and says what Linux would wait.
   Says one line of JSON. */
#include "storm_http.h"
#include "storm_replies.h"

static const uint8_t *map_file(const char *path, uint64_t *bytes)
{
    struct stat state;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &state))
        die(path);
    const uint8_t *data = mmap(NULL, (size_t)state.st_size, PROT_READ, MAP_SHARED, fd, 0);
    if (data == MAP_FAILED)
        die(path);
    close(fd);
    *bytes = (uint64_t)state.st_size;
    return data;
}

static int open_packet(const char *interface, uint32_t protocol)
{
    int fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
    struct sockaddr_ll address = {.sll_family = AF_PACKET, .sll_protocol = htons((uint16_t)protocol),
                                  .sll_ifindex = (int)if_nametoindex(interface)};
    if (fd < 0)
        die("packet socket");
    option(fd, PACKET_IGNORE_OUTGOING, 1);
    option(fd, PACKET_QDISC_BYPASS, 1);
    if (bind(fd, (struct sockaddr *)&address, sizeof address))
        die(interface);
    return fd;
}

static int by_number(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static int has_http;

/* What iPXE writes as %40 is @ in the file's name. */
static void undo_percent(char *name)
{
    char *to = name;
    for (const char *from = name; *from; to++) {
        unsigned code;
        if (*from == '%' && sscanf(from, "%%%2x", &code) == 1) {
            *to = (char)code;
            from += 3;
        } else {
            *to = *from++;
        }
    }
    *to = 0;
}

static void load_program(const char *path, const char *files)
{
    uint64_t bytes;
    const uint8_t *data = map_file(path, &bytes);
    if (bytes < 16 || memcmp(data, "PXEDSTRM", 8))
        die("program");
    memcpy(&op_count, data + 8, 4);
    ops = (const struct op *)(data + 16);
    blobs = data + 16 + op_count * sizeof *ops;
    op_file = calloc(op_count, sizeof *op_file);
    uint64_t most = 1;
    for (uint32_t i = 0; i < op_count; i++)
        most += ops[i].kind == WRITE ? ops[i].count : 0;
    changed = calloc(most, sizeof *changed);
    if (!op_file || !changed)
        die("memory");
    for (uint32_t i = 0; i < op_count; i++) {
        if (ops[i].kind == WRITE && ops[i].device == CONFIG)
            for (uint32_t s = 0; s < ops[i].count; s++)
                changed[changed_count++] = ops[i].lba + s;
        if (ops[i].kind != TFTP && ops[i].kind != HTTP)
            continue;
        has_http |= ops[i].kind == HTTP;
        char full[4096], *name = strndup((const char *)blobs + ops[i].blob, ops[i].extra);
        int folder = snprintf(full, sizeof full, "%s/", files);
        snprintf(full + folder, sizeof full - (size_t)folder, "%s", name + (*name == '/'));
        if (ops[i].kind == HTTP)
            undo_percent(full + folder);
        op_file[i].name = name;
        op_file[i].data = map_file(full, &op_file[i].bytes);
    }
    qsort(changed, changed_count, sizeof *changed, by_number);
    uint32_t kept = 0;
    for (uint32_t i = 0; i < changed_count; i++)
        if (!kept || changed[kept - 1] != changed[i])
            changed[kept++] = changed[i];
    changed_count = kept;
}

static void make_clients(void)
{
    clients = calloc(client_count, sizeof *clients);
    deadlines = calloc(client_count, sizeof *deadlines);
    if (!clients || !deadlines)
        die("memory");
    for (uint32_t n = 0; n < client_count; n++) {
        struct client *client = &clients[n];
        const uint8_t mac[6] = {2, 0xBE, 0, 0, (uint8_t)((n + first_mac) >> 8), (uint8_t)(n + first_mac)};
        memcpy(client->mac, mac, 6);
        client->number = n;
        client->ended = calloc(op_count, sizeof *client->ended);
        client->issued = calloc(changed_count / 8 + 1, 1);
        client->written = calloc(changed_count / 8 + 1, 1);
        if (!client->ended || !client->issued || !client->written)
            die("memory");
        while (client->free_count < FRAMES) {
            client->free[client->free_count] = client->free_count;
            client->free_count++;
        }
    }
}

/* What Linux would wait for, after each of the round trips on our input. */
static int say_timeouts(int bufcnt)
{
    struct path path;
    char word[32];
    path_found(&path, (uint32_t)bufcnt);
    printf("%ld %u\n", (long)path_timeout(&path), path.window);
    while (scanf("%31s", word) == 1) {
        if (!strcmp(word, "lost")) {
            path_lost(&path);
        } else if (!strncmp(word, "offer=", 6)) {
            path_offered(&path, (uint32_t)atoi(word + 6));
        } else {
            path.out = path.window; /* as in a boot that always has more to read */
            path_heard(&path, atol(word), 1);
        }
        printf("%ld %u\n", (long)path_timeout(&path), path.window);
    }
    return 0;
}

static void say(int64_t start, int64_t end, int64_t own, uint64_t lost)
{
    printf("{\"clients\": %u, \"running\": %u, \"seconds\": %.6f, \"run_s\": [", client_count, running,
           (double)(end - start) / 1e9);
    for (uint32_t n = 0, said = 0; n < client_count; n++)
        if (clients[n].ran)
            printf("%s%.6f", said++ ? ", " : "", (double)(clients[n].ran - clients[n].begun) / 1e9);
    printf("], \"stuck\": [");
    for (uint32_t n = 0, said = 0; n < client_count && said < 5; n++)
        if (!clients[n].ran)
            printf("%s[%u, %u, %u]", said++ ? ", " : "", n, clients[n].at, clients[n].stage);
    printf("], \"latency\": {");
    for (int what = 0; what < MEASURED; what++) {
        uint64_t seen = 0;
        printf("%s\"%s\": {\"count\": %lu, \"worst_us\": %.1f, \"buckets\": [", what ? ", " : "",
               measured_names[what], counted[what], (double)worst_ns[what] / 1e3);
        for (uint32_t i = 0; i < BUCKETS; i++)
            if (histogram[what][i]) {
                printf("%s[%.3f, %lu]", seen ? ", " : "", bucket_us(i), histogram[what][i]);
                seen += histogram[what][i];
            }
        printf("]}");
    }
    printf("}, \"sent\": %lu, \"wrong\": %lu, \"failed\": %lu, \"stray\": %lu, \"lost\": %lu, ", sent_aoe, wrong,
           failed, stray, lost);
    printf("\"again\": {\"dhcp\": %lu, \"tftp\": %lu, \"ipxe\": %lu, \"aoe\": %lu, \"http\": %lu}, \"asked_again\": %lu, ",
           again_dhcp, again_tftp, again_ipxe, again_aoe, again_http, again_find);
    printf("\"read_bytes\": %lu, \"written_bytes\": %lu, \"tftp_bytes\": %lu, \"http_bytes\": %lu, ", read_bytes,
           written_bytes, tftp_bytes, http_bytes);
    printf("\"up_bytes\": %lu, \"down_bytes\": %lu, ", up_bytes, down_bytes);
    printf("\"own_cpu_s\": %.6f}\n", (double)own / 1e9);
}

int main(int argc, char **argv)
{
    if (number_arg(argc, argv, "timeouts", 0) != 0)
        return say_timeouts((int)number_arg(argc, argv, "bufcnt", MAXOUT));
    const char *interface = text_arg(argc, argv, "interface", "eth0");
    const char *mac = text_arg(argc, argv, "target", NULL);
    double spread = number_arg(argc, argv, "spread", 0);
    uint32_t mtu = (uint32_t)number_arg(argc, argv, "mtu", 1500), size;

    client_count = (uint32_t)number_arg(argc, argv, "clients", 1);
    first_mac = (uint32_t)number_arg(argc, argv, "first", 0);
    devices_mask = (uint32_t)number_arg(argc, argv, "devices", 27);
    config_shelf = (uint32_t)number_arg(argc, argv, "config_shelf", 0);
    think = number_arg(argc, argv, "think", 0);
    nbd_port = (uint32_t)number_arg(argc, argv, "nbd", 0);
    reads_only = !strcmp(text_arg(argc, argv, "mode", "all"), "reads");
    mtu_bytes = mtu;
    mtu_sectors = (mtu - HEAD) / SECTOR;
    if (mtu_sectors > MOST_SECTORS)
        mtu_sectors = MOST_SECTORS;
    if (!client_count || client_count > 8192 || mtu < 1500 || mtu > 9000 ||
        inet_pton(AF_INET, text_arg(argc, argv, "server", NULL), &server_ip) != 1 ||
        sscanf(mac, "%2hhx:%2hhx:%2hhx:%2hhx:%2hhx:%2hhx", target, target + 1, target + 2, target + 3, target + 4,
               target + 5) != 6) {
        fprintf(stderr, "numbers out of range\n");
        return 2;
    }
    load_program(text_arg(argc, argv, "program", NULL), text_arg(argc, argv, "files", NULL));
    const char *names[] = {"boot", "root", NULL, "config"};
    for (int device = 0; device < 4; device++)
        if (names[device]) {
            image[device] = map_file(text_arg(argc, argv, names[device], NULL), &image_sectors[device]);
            image_sectors[device] /= SECTOR;
        }
    shift = image_sectors[0];
    make_clients();
    uint32_t most = client_count * MAXOUT;
    aoe = open_ring(interface, most + most / 2 + 1024, (HEAD + mtu_sectors * SECTOR + 80 + 127) / 128 * 128,
                    0, 1 << 16);
    ip = open_ring_for(interface, ETHERTYPE_IP, 2 * client_count + 1024,
                       (MOST_PACKET + 80 + 127) / 128 * 128, 0, 0);
    keep_protocol(ip.fd, 17);
    if (has_http && !reads_only)
        open_web(interface);
    arp = open_packet(interface, ETHERTYPE_ARP);
    for (uint32_t i = 0; i < BATCH; i++) {
        parts[i][0] = (struct iovec){heads[i], 60};
        parts[i][1] = (struct iovec){payload[i], 0};
        messages[i].msg_hdr.msg_iov = parts[i];
    }

    int64_t own = cpu_ns(), idle = 0, idle_since = 0, now = now_ns(), start = now, looked = 0;
    int64_t end = start + (int64_t)(number_arg(argc, argv, "limit", 120) * 1e9);
    uint64_t lost = 0;
    for (uint32_t n = 0; n < client_count; n++) {
        clients[n].begun = start + (int64_t)(spread * 1e9 * n / client_count);
        clients[n].timer = clients[n].begun;
        set_deadline(&clients[n]);
    }
    while (running < client_count && now < end) {
        uint32_t count = 0;
        uint8_t *data;
        now = now_ns();
        while (count < BATCH && (data = ring_frame(&aoe, 0, &size))) {
            take_aoe(data, size, now);
            ring_release(&aoe, 1);
            count++;
        }
        for (uint32_t packets = 0; packets < 16 && (data = ring_frame(&ip, 0, &size)); packets++) {
            take_ip(data, size, now);
            ring_release(&ip, 1);
            count++;
        }
        if (web >= 0)
            count += poll_web(now);
        if (nbd_port)
            count += poll_nbd(now);
        if (now - looked > 200000) {
            looked = now;
            answer_arp();
            for (uint32_t n = 0; n < client_count; n++)
                if (now >= deadlines[n])
                    wake(&clients[n], now);
        }
        if (batched || count) {
            flush();
            idle_since = 0;
            continue;
        }
        if (idle_since) /* a longer look than this was none: another process had the CPU */
            idle += now - idle_since < 1000 ? now - idle_since : 1000;
        idle_since = now;
        relax();
    }
    lost = ring_lost(&aoe) + ring_lost(&ip) + (web < 0 ? 0 : socket_lost(web));
    say(start, now, cpu_ns() - own - idle, lost);
    return 0;
}
