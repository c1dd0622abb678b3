/* Reads, writes and flushes at random beside a model of the disk: every read is compared with it.

   mixed interface=eth0 target=MAC span=SECTORS versions=PATH requests=N [clients=4] [window=16]
         [sectors=2] [flush=1000] [seed=1] [again=5000]

   One export, at shelf 16, slot 0. Client c has MAC 02:be:00:00:00:c and `window` requests out. Each
   slot of a window has runs of 16 sectors of its own, which begin in the middle of pages and go
   across chunks; so what a read must find follows from the acknowledgements alone, while its
   neighbours in the page are written to. A request has 1 to `sectors` sectors; one in `flush` is a
   FLUSH, half of the others are writes. What gets no answer for `again` ms is sent again as it was. Run
   it on one CPU where that happens: two have a queue each, and the second copy may be the first.
   versions: a file of 32 bits for each sector, what bench/pattern.py calls its version: read at the
   start, written at the end, which SIGTERM brings on. Says one line of JSON. */
#include "ring.h"

#define STEP UINT64_C(0x9E3779B97F4A7C15)

enum { RUN = 16, SKEW = 9, HEAD = 36, MOST = 16 };
enum kind { READ = 0x24, WRITE = 0x34, FLUSH = 0xEA };

struct request {
    uint64_t lba;
    int64_t sent; /* 0: not on the wire */
    uint32_t count, turn, version;
    enum kind kind;
};

static uint32_t clients, window, total, *versions, newest;
static uint64_t span, runs, seed, done[3], wrong, failed, again, stray;
static uint8_t target[6];
static volatile sig_atomic_t enough;

static uint64_t below(uint64_t bound)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (seed >> 8) % bound;
}

static uint64_t word(uint64_t lba, uint64_t version)
{
    return UINT64_C(0xD1B54A32D192ED03) + lba * UINT64_C(0xBF58476D1CE4E5B9)
         + version * UINT64_C(0x94D049BB133111EB);
}

static void choose(struct request *request, uint32_t slot, uint32_t sectors, uint32_t flush)
{
    uint64_t run = below((runs - slot + total - 1) / total) * total + slot;
    uint32_t first;
    request->kind = flush && !below(flush) ? FLUSH : below(2) ? WRITE : READ;
    request->count = request->kind == FLUSH ? 0 : 1 + (uint32_t)below(sectors);
    first = (uint32_t)below(RUN - request->count + 1);
    request->lba = request->kind == FLUSH ? 0 : SKEW + run * RUN + first;
    if (request->kind == WRITE)
        request->version = ++newest;
}

static void post(int fd, struct request *request, uint32_t slot)
{
    static uint8_t frame[HEAD + MOST * SECTOR];
    struct ata *head = (struct ata *)frame;
    uint32_t client = slot % clients, size = 60;
    memset(frame, 0, size);
    memcpy(head->dst, target, 6);
    memcpy(head->src, (uint8_t[6]){2, 0xBE, 0, 0, (uint8_t)(client >> 8), (uint8_t)client}, 6);
    head->ethertype = htons(ETHERTYPE_AOE);
    head->version_flags = 0x10;
    head->shelf = htons(16);
    head->tag = ++request->turn << 16 | slot;
    head->aflags = request->kind == WRITE ? 0x41 : 0x40;
    head->count = (uint8_t)request->count;
    head->status = (uint8_t)request->kind;
    memcpy(head->lba, &request->lba, 6);
    if (request->kind == WRITE) {
        size = HEAD + request->count * SECTOR;
        for (uint32_t s = 0; s < request->count; s++)
            for (uint64_t i = 0; i < SECTOR / 8; i++) {
                uint64_t value = word(request->lba + s, request->version) + i * STEP;
                memcpy(frame + HEAD + s * SECTOR + i * 8, &value, 8);
            }
    }
    request->sent = now_ns();
    while (send(fd, frame, size, 0) < 0)
        if (errno != EINTR && errno != ENOBUFS && errno != EAGAIN)
            die("send");
}

static void compare(const struct request *request, const uint8_t *data)
{
    for (uint32_t s = 0; s < request->count; s++)
        for (uint64_t i = 0; i < SECTOR / 8; i++) {
            uint64_t lba = request->lba + s, value, expected = word(lba, versions[lba]) + i * STEP;
            memcpy(&value, data + s * SECTOR + i * 8, 8);
            if (value != expected) {
                if (!wrong++)
                    fprintf(stderr, "sector %lu, word %lu: not of version %u\n", lba, i, versions[lba]);
                return;
            }
        }
}

/* Whether it was the answer to a request that is out. */
static int take(struct request *requests, const uint8_t *frame, uint32_t size)
{
    const struct ata *head = (const struct ata *)frame;
    uint32_t slot = head->tag & 0xFFFF;
    struct request *request = &requests[slot];
    if (slot >= total || !request->sent || head->tag >> 16 != (request->turn & 0xFFFF)) {
        stray++; /* of a request that was sent again */
        return 0;
    }
    request->sent = 0;
    if (head->version_flags & 0x04 || head->status != 0x40)
        failed++;
    else if (request->kind == READ && size < HEAD + request->count * SECTOR)
        wrong++;
    else if (request->kind == READ)
        compare(request, frame + HEAD);
    else if (request->kind == WRITE)
        for (uint32_t s = 0; s < request->count; s++)
            versions[request->lba + s] = request->version;
    done[request->kind == READ ? 0 : request->kind == WRITE ? 1 : 2]++;
    return 1;
}

static void stop(int number)
{
    (void)number;
    enough = 1;
}

int main(int argc, char **argv)
{
    const char *mac = text_arg(argc, argv, "target", NULL);
    const char *path = text_arg(argc, argv, "versions", NULL);
    uint64_t wanted = (uint64_t)atoll(text_arg(argc, argv, "requests", NULL)), begun = 0, ended = 0;
    uint32_t sectors = (uint32_t)number_arg(argc, argv, "sectors", 2);
    uint32_t flush = (uint32_t)number_arg(argc, argv, "flush", 1000), size;
    int64_t patience = (int64_t)(number_arg(argc, argv, "again", 5000) * 1e6);
    clients = (uint32_t)number_arg(argc, argv, "clients", 4);
    window = (uint32_t)number_arg(argc, argv, "window", 16);
    span = (uint64_t)atoll(text_arg(argc, argv, "span", NULL));
    seed = (uint64_t)number_arg(argc, argv, "seed", 1) * STEP + 1;
    total = clients * window;
    runs = span > SKEW ? (span - SKEW) / RUN : 0;
    if (!total || total > 1 << 12 || runs < total || !sectors || sectors > MOST ||
        sscanf(mac, "%2hhx:%2hhx:%2hhx:%2hhx:%2hhx:%2hhx", target, target + 1, target + 2,
               target + 3, target + 4, target + 5) != 6) {
        fprintf(stderr, "numbers out of range\n");
        return 2;
    }
    struct request *requests = calloc(total, sizeof *requests);
    versions = calloc(span, sizeof *versions);
    FILE *file = fopen(path, "r+b");
    if (!requests || !versions || !file || fread(versions, sizeof *versions, span, file) != span)
        die(path);
    signal(SIGTERM, stop);
    for (uint64_t i = 0; i < span; i++)
        newest = versions[i] > newest ? versions[i] : newest;
    struct ring ring = open_ring(text_arg(argc, argv, "interface", "eth0"), 2 * total + 64,
                                 (HEAD + sectors * SECTOR + 80 + 127) / 128 * 128, 0, clients);
    for (int64_t looked = now_ns(); ended < wanted;) {
        uint8_t *frame;
        if (enough)
            wanted = begun;
        for (uint32_t slot = 0; slot < total && begun < wanted; slot++)
            if (!requests[slot].sent) {
                choose(&requests[slot], slot, sectors, flush);
                post(ring.fd, &requests[slot], slot);
                begun++;
            }
        struct pollfd ready = {ring.fd, POLLIN, 0};
        poll(&ready, 1, 10);
        while ((frame = ring_frame(&ring, 0, &size))) {
            ended += (uint64_t)take(requests, frame, size);
            ring_release(&ring, 1);
        }
        if (now_ns() - looked > 10000000) {
            looked = now_ns();
            for (uint32_t slot = 0; slot < total; slot++)
                if (requests[slot].sent && looked - requests[slot].sent > patience) {
                    post(ring.fd, &requests[slot], slot);
                    again++;
                }
        }
    }
    rewind(file);
    if (fwrite(versions, sizeof *versions, span, file) != span || fclose(file))
        die(path);
    printf("{\"reads\": %lu, \"writes\": %lu, \"flushes\": %lu, \"wrong\": %lu, \"failed\": %lu, "
           "\"again\": %lu, \"stray\": %lu}\n", done[0], done[1], done[2], wrong, failed, again, stray);
    return 0;
}
