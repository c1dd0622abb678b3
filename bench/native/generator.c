/* AoE load from many clients: each with its own MAC and window, every reply's data verified.

   generator interface=eth0 target=MAC clients=8 window=64 op=read|write sectors=2 exports=1
             span=SECTORS seconds=2 [wait=spin|sleep] [rate=0] [seed=1] [discover=0] [pids=1,2,3]
             [version=1] [first=0] [mac=0] [beside=0] [beside_rate=500]

   Export e is at shelf 16 + e / 240, slot e % 240. Client c asks exports e with e % clients == c,
   or c % exports if there are fewer exports than clients. A 512-byte sector holds 64 words that
   follow from export, LBA and version (0: as made; what is written: as told): see `word`.
   first, mac: numbers that exports and clients' MACs start from. beside: one client more, that reads
   export `beside` with 4 requests on their way, beside_rate a second; its latency is told apart. It
   is played here, as a process of its own would take this one's CPU again and again. rate: requests a
   second at most, 0: as fast as replies come. discover: first every client broadcasts a config query,
   all at once. pids: processes whose CPU time is taken just before the first request and just
   after the last reply. Says one line of JSON. */
#include "sendring.h"

/* So much longer a measurement lasts that has heard nothing yet: a disk may stand still for a moment. */
#define NOTHING_NS 10000000000

/* LEAST: a client's request is that many bytes at least, on a real wire. */
enum { BATCH = 32, MOST_SECTORS = 16, HEAD = 36, LEAST = 60, OCTAVE = 64, BUCKETS = 64 * OCTAVE };

struct request {
    uint64_t lba;
    int64_t sent;       /* 0: not on the wire */
    uint32_t export;
    uint32_t turn;      /* how often this slot was used: in the tag's upper bits */
};

static uint32_t clients, window, sectors, exports, total;
static uint64_t span, seed, version;
static uint32_t first_export, first_mac;
static int writes;
static struct request *requests;
static uint32_t *waiting, waiting_head, waiting_count;
static uint64_t histogram[BUCKETS];
static uint8_t target[6];
static uint32_t beside, beside_slots, resting[4], resting_count; /* of the client beside */
static uint64_t beside_histogram[BUCKETS], beside_replies;
static uint64_t replies, wrong, failed, stray, lost, discovered;

/* The first word of a sector; word i is this plus i times STEP. */
#define STEP UINT64_C(0x9E3779B97F4A7C15)
static inline uint64_t word(uint64_t export, uint64_t lba, uint64_t version)
{
    return (export + 1) * UINT64_C(0xD1B54A32D192ED03) + lba * UINT64_C(0xBF58476D1CE4E5B9)
         + version * UINT64_C(0x94D049BB133111EB);
}

static inline uint64_t random_number(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed;
}

typedef uint64_t __attribute__((aligned(1), may_alias)) loose;

static void fill(uint8_t *data, uint32_t export, uint64_t lba, uint32_t count)
{
    for (uint32_t s = 0; s < count; s++) {
        uint64_t first = word(export, lba + s, version);
        loose *words = (loose *)(data + s * SECTOR);
        for (uint64_t i = 0; i < SECTOR / 8; i++)
            words[i] = first + i * STEP;
    }
}

static int is_right(const uint8_t *data, uint32_t export, uint64_t lba, uint32_t count)
{
    uint64_t differs = 0;
    for (uint32_t s = 0; s < count; s++) {
        uint64_t first = word(export, lba + s, 0);
        const loose *words = (const loose *)(data + s * SECTOR);
        for (uint64_t i = 0; i < SECTOR / 8; i++)
            differs |= words[i] ^ (first + i * STEP);
    }
    return differs == 0;
}

static void source(uint8_t *mac, uint32_t client)
{
    client += first_mac;
    const uint8_t own[6] = {2, 0xBE, 0, 0, (uint8_t)(client >> 8), (uint8_t)client};
    memcpy(mac, own, 6);
}

static uint32_t client_of(const uint8_t *mac)
{
    return (((uint32_t)mac[4] << 8) | mac[5]) - first_mac;
}

/* The last one is the client beside. */
static uint32_t owner(uint32_t slot)
{
    return slot < total ? slot % clients : clients;
}

/* 64 buckets for each power of two: within 1.6 %. */
static void note_latency(uint64_t *counts, int64_t ns)
{
    uint64_t value = ns > 0 ? (uint64_t)ns : 0;
    uint32_t shift = 0;
    while ((value >> shift) >= 2 * OCTAVE)
        shift++;
    counts[shift * OCTAVE + (value >> shift)]++;
}

static double percentile(const uint64_t *counts, uint64_t all, double share)
{
    uint64_t below = (uint64_t)((double)all * share), seen = 0;
    for (uint32_t i = 0; i < BUCKETS; i++) {
        seen += counts[i];
        if (seen > below) {
            uint32_t shift = i < 2 * OCTAVE ? 0 : i / OCTAVE - 1;
            return (double)((uint64_t)(i - shift * OCTAVE) << shift) / 1e3;
        }
    }
    return 0;
}

/* The next request of a slot, into `frame`; its size. */
static uint32_t put_request(uint8_t *frame, uint32_t slot)
{
    struct request *request = &requests[slot];
    struct ata *head = (struct ata *)frame;
    uint32_t client = owner(slot);
    if (slot >= total)
        request->export = beside;
    else if (exports > clients)
        request->export = client + clients * (uint32_t)(random_number() %
            ((exports - client + clients - 1) / clients));
    else
        request->export = client % exports;
    request->export += slot < total ? first_export : 0;
    request->turn++;
    request->lba = random_number() % (span / sectors) * sectors;
    memcpy(head->dst, target, 6);
    source(head->src, client);
    head->ethertype = htons(ETHERTYPE_AOE);
    head->version_flags = 0x10;
    head->shelf = htons((uint16_t)(16 + request->export / 240));
    head->slot = (uint8_t)(request->export % 240);
    head->command = 0;
    head->tag = (request->turn << 17) | slot;
    head->aflags = writes ? 0x41 : 0x40;
    head->count = (uint8_t)sectors;
    head->status = writes ? 0x34 : 0x24;
    memcpy(head->lba, &request->lba, 6);
    if (!writes)
        return LEAST; /* the rest of the place is zero: nothing longer was ever in it */
    fill(frame + HEAD, request->export, request->lba, sectors);
    return HEAD + sectors * SECTOR;
}

static void take_reply(const uint8_t *frame, uint32_t size, int64_t now)
{
    const struct ata *head = (const struct ata *)frame;
    uint32_t slot = head->tag & 0x1FFFF;
    uint32_t need = writes ? HEAD : HEAD + sectors * SECTOR;
    struct request *request;

    if (head->command != 0) {
        discovered++;
        return;
    }
    if (slot >= total + beside_slots || client_of(head->dst) != owner(slot)) {
        stray++;
        return;
    }
    request = &requests[slot];
    if (!request->sent || head->tag >> 17 != (request->turn & 0x7FFF)) {
        stray++; /* the answer to a request that was given up */
        return;
    }
    if ((head->version_flags & 0x04) || head->status != 0x40)
        failed++;
    else if (size < need || memcmp(head->src, target, 6) ||
             (!writes && !is_right(frame + HEAD, request->export, request->lba, sectors)))
        wrong++;
    int64_t took = now - request->sent;
    request->sent = 0;
    if (slot < total) {
        note_latency(histogram, took);
        replies++;
        waiting[(waiting_head + waiting_count++) % total] = slot;
    } else {
        note_latency(beside_histogram, took);
        beside_replies++;
        resting[resting_count++] = slot;
    }
}

static int64_t cpu_of(const char *pids)
{
    int64_t sum = 0;
    while (*pids) {
        char *end;
        long pid = strtol(pids, &end, 10);
        struct timespec t;
        if (end == pids)
            break;
        if (!clock_gettime((clockid_t)((~(unsigned)pid << 3) | 2), &t))
            sum += (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
        pids = *end ? end + 1 : end;
    }
    return sum;
}

/* Everybody asks at once; until `expected` answers are there, or for 5 s. Milliseconds. */
static double discover(struct ring *ring, uint64_t expected)
{
    static uint8_t frame[60] = {0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, [12] = 0x88, 0xA2, 0x10, 0,
                                0xFF, 0xFF, 0xFF, 1};
    int64_t start = now_ns(), last = start;
    for (uint32_t client = 0; client < clients; client++) {
        source(frame + 6, client);
        if (send(ring->fd, frame, sizeof frame, 0) < 0)
            die("send");
    }
    while (discovered < expected && now_ns() - start < 5000000000) {
        uint32_t size;
        uint8_t *found = ring_frame(ring, 0, &size);
        if (found) {
            take_reply(found, size, 0);
            ring_release(ring, 1);
            last = now_ns();
        }
    }
    return (double)(last - start) / 1e6;
}

int main(int argc, char **argv)
{
    const char *mac = text_arg(argc, argv, "target", NULL);
    const char *pids = text_arg(argc, argv, "pids", "");
    double seconds = number_arg(argc, argv, "seconds", 2);
    double rate = number_arg(argc, argv, "rate", 0), found_ms = 0;
    double beside_rate = number_arg(argc, argv, "beside_rate", 500);
    int discovers = number_arg(argc, argv, "discover", 0) != 0;
    int sleeps = !strcmp(text_arg(argc, argv, "wait", "spin"), "sleep");
    uint32_t frame_bytes, size;

    clients = (uint32_t)number_arg(argc, argv, "clients", 8);
    window = (uint32_t)number_arg(argc, argv, "window", 64);
    sectors = (uint32_t)number_arg(argc, argv, "sectors", 2);
    exports = (uint32_t)number_arg(argc, argv, "exports", 1);
    first_export = (uint32_t)number_arg(argc, argv, "first", 0);
    first_mac = (uint32_t)number_arg(argc, argv, "mac", 0);
    version = (uint64_t)number_arg(argc, argv, "version", 1);
    span = (uint64_t)atoll(text_arg(argc, argv, "span", NULL));
    seed = (uint64_t)number_arg(argc, argv, "seed", 1) * STEP + 1;
    writes = !strcmp(text_arg(argc, argv, "op", "read"), "write");
    total = clients * window;
    beside = (uint32_t)number_arg(argc, argv, "beside", 0);
    beside_slots = beside ? sizeof resting / sizeof *resting : 0;
    if (!clients || !window || !exports || total + beside_slots > 1 << 17 || clients + first_mac > 1 << 16 || !sectors ||
        sectors > MOST_SECTORS || span < sectors ||
        sscanf(mac, "%2hhx:%2hhx:%2hhx:%2hhx:%2hhx:%2hhx", target, target + 1, target + 2,
               target + 3, target + 4, target + 5) != 6) {
        fprintf(stderr, "numbers out of range\n");
        return 2;
    }
    /* The least that holds a reply: the server's CPU fills this ring, so it is kept small. */
    frame_bytes = ((writes ? 64 : HEAD + sectors * SECTOR) + 80 + 127) / 128 * 128;
    requests = calloc(total + beside_slots, sizeof *requests);
    waiting = calloc(total, sizeof *waiting);
    if (!requests || !waiting)
        die("memory");
    struct ring ring = open_ring(text_arg(argc, argv, "interface", "eth0"),
                                 total + (discovers ? clients : 0) + 64, frame_bytes, first_mac,
                                 clients + (beside ? 1 : 0));
    struct send_ring out = open_send_ring(text_arg(argc, argv, "interface", "eth0"), 4 * BATCH,
                                          writes ? HEAD + sectors * SECTOR : LEAST);
    for (uint32_t i = 0; i < total; i++)
        waiting[waiting_count++] = i;
    while (resting_count < beside_slots) {
        resting[resting_count] = total + resting_count;
        resting_count++;
    }
    if (discovers)
        found_ms = discover(&ring, exports > clients ? exports : clients);

    int64_t server = cpu_of(pids), own = cpu_ns(), idle = 0, idle_since = 0;
    int64_t start = now_ns(), end = start + (int64_t)(seconds * 1e9), now = start, looked = start;
    uint64_t sent_total = 0, beside_sent = 0;
    uint32_t slots[BATCH];
    for (;;) {
        uint32_t count = 0, sending = 0, others = 0;
        uint8_t *frame, *place;
        now = now_ns();
        while (count < BATCH && (frame = ring_frame(&ring, 0, &size))) {
            ring_fetch(&ring, 1);
            take_reply(frame, size, now);
            ring_release(&ring, 1);
            count++;
        }
        if (now < end || (!replies && now < end + NOTHING_NS)) {
            uint64_t allowed = rate > 0 ? (uint64_t)((double)(now - start) * rate / 1e9) : UINT64_MAX;
            while (sending < BATCH && waiting_count && sent_total + sending < allowed &&
                   (place = send_ring_place(&out, sending))) {
                uint32_t slot = slots[sending] = waiting[waiting_head];
                waiting_head = waiting_head + 1 < total ? waiting_head + 1 : 0;
                waiting_count--;
                send_ring_ready(&out, sending, put_request(place, slot));
                sending++;
            }
            while (sending < BATCH && resting_count &&
                   (double)beside_sent < (double)(now - start) * beside_rate / 1e9 &&
                   (place = send_ring_place(&out, sending))) {
                slots[sending] = resting[--resting_count];
                send_ring_ready(&out, sending, put_request(place, slots[sending]));
                sending++;
                beside_sent++;
                others++;
            }
        } else if (waiting_count == total && resting_count == beside_slots) {
            break;
        }
        if (sending) {
            now = now_ns();
            for (uint32_t i = 0; i < sending; i++)
                requests[slots[i]].sent = now;
            send_ring_go(&out, sending);
            sent_total += sending - others;
        }
        if (now - looked > 100000000) { /* give up what has waited for a second */
            looked = now;
            for (uint32_t i = 0; i < total + beside_slots; i++)
                if (requests[i].sent && now - requests[i].sent > 1000000000) {
                    requests[i].sent = 0;
                    lost++;
                    if (i < total)
                        waiting[(waiting_head + waiting_count++) % total] = i;
                    else
                        resting[resting_count++] = i;
                }
        }
        if (count || sending) {
            idle_since = 0;
            continue;
        }
        if (sleeps) {
            struct pollfd ready = {ring.fd, POLLIN, 0};
            poll(&ready, 1, rate > 0 || beside ? 1 : 100);
            continue;
        }
        if (idle_since) /* a longer look than this was none: another process had the CPU */
            idle += now - idle_since < 1000 ? now - idle_since : 1000;
        idle_since = now;
        relax();
    }
    server = cpu_of(pids) - server;
    own = cpu_ns() - own - idle;
    seconds = (double)(now - start) / 1e9;
    printf("{\"replies\": %lu, \"seconds\": %.6f, \"iops\": %.1f, \"mb_s\": %.2f, ", replies, seconds,
           (double)replies / seconds, (double)replies * sectors * SECTOR / seconds / 1e6);
    printf("\"p50_us\": %.3f, \"p99_us\": %.3f, \"p999_us\": %.3f, ", percentile(histogram, replies, 0.5),
           percentile(histogram, replies, 0.99), percentile(histogram, replies, 0.999));
    printf("\"beside_iops\": %.1f, \"beside_p50_us\": %.3f, ", (double)beside_replies / seconds,
           percentile(beside_histogram, beside_replies, 0.5));
    printf("\"server_cpu_ns\": %ld, \"own_ns\": %.1f, ", server,
           replies ? (double)own / (double)replies : 0);
    printf("\"wrong\": %lu, \"failed\": %lu, \"lost\": %lu, \"stray\": %lu, \"drops\": %u, ", wrong,
           failed, lost, stray, ring_lost(&ring));
    printf("\"discovered\": %lu, \"discover_ms\": %.3f}\n", discovered, found_ms);
    return 0;
}
