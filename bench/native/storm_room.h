/* What all of a storm shares: clients and what they are doing, what is measured, sending, data. */
#ifndef BENCH_STORM_ROOM_H
#define BENCH_STORM_ROOM_H

#include "storm_linux.h"
#include "storm_wire.h"
#include "storm_nbd.h"

#include <net/ethernet.h>
#include <sys/stat.h>

enum {
    BATCH = 64, HEAD = 36, MOST_SECTORS = 16, DEVICES = 5, CONFIG = 3, REPORT = 4, FRAMES = 128, BIOS = 64,
    FREE = 0, OUT, OVERDUE, IDENTIFY = 0xFFFF, IPXE_WAIT_MS = 250, OCTAVE = 64, BUCKETS = 64 * OCTAVE, PIECES = 32,
};
enum kind { DHCP = 1, TFTP, FIND, SINGLE, DISKS, READ, WRITE, TELL, RUNNING, HTTP };
enum measured { M_SINGLE, M_READ, M_WRITE, M_DHCP, M_TFTP, M_HTTP, MEASURED };
static const char *const measured_names[] = {"ipxe", "read", "write", "dhcp", "tftp", "http"};

struct op {
    uint8_t kind, device;
    uint16_t extra;             /* bytes of its blob; DHCP: the device field says whether to broadcast */
    uint32_t count;             /* sectors, or bytes of a file */
    uint64_t lba;               /* TFTP: block size; HTTP: first byte; DISKS: bits of the disks that it waits for */
    uint32_t after;             /* 1 + the operation that must have ended before; 0: none */
    uint32_t think_us, pace_us; /* before it; before each request of a SINGLE run but the first */
    uint32_t blob;
};

struct frame {
    int64_t sent;
    uint64_t lba;
    uint32_t tag;
    uint16_t bio;
    uint8_t device, sectors, state, writes;
};

struct bio {
    int64_t sent;               /* by NBD */
    uint64_t lba;
    uint32_t left, busy, op;
    uint8_t device, used;
};

struct disk {
    struct path path;
    uint32_t sectors;           /* in each frame; 0: not found yet */
    uint16_t queue[BIOS], head, queued;
    uint8_t overdue[FRAMES], overdue_head, overdue_count;
    uint8_t up;
};

struct tcp {
    uint32_t next, wanted;      /* sequence numbers: of our next byte, of the one that we wait for */
    uint64_t body;              /* bytes of the file that have come */
    uint32_t piece[PIECES][2], pieces; /* what has come before its turn: first byte, the one after */
    uint16_t port, head_bytes;
    uint8_t state, answered;    /* answered: the head of the answer is whole */
    char head[1024];
};

struct client {
    int64_t begun, ran, timer, tick, asked;
    uint32_t number, at, unfinished, ip, server, xid, wait_ms, turns;
    uint32_t done;              /* of a SINGLE run: sectors; of a file: blocks acknowledged */
    uint16_t port, peer_port;
    uint8_t stage, mac[6];      /* stage 0: the operation at `at` has not begun */
    uint32_t tag, single_tag;
    uint64_t single_lba;
    uint8_t single_sectors, free_count, free[FRAMES], slot_of[256];
    uint32_t packet_bytes;
    uint8_t packet[600];        /* the last of DHCP or TFTP, to be sent again */
    struct frame frames[FRAMES];
    struct bio bios[BIOS];
    struct disk disks[DEVICES];
    struct connection connections[DEVICES];
    struct tcp tcp;
    uint32_t *ended;            /* for each operation: microseconds after `begun`, 0: not yet */
    uint8_t *issued, *written;  /* a bit for each sector in `changed` */
};

struct file {
    const char *name;
    const uint8_t *data;
    uint64_t bytes;
};

static struct client *clients;
static int64_t *deadlines;
static const struct op *ops;
static const uint8_t *blobs;
static uint32_t client_count, op_count, first_mac, devices_mask, config_shelf, mtu_sectors, mtu_bytes, running;
static uint64_t *changed;
static uint32_t changed_count;
static const uint8_t *image[DEVICES];
static uint64_t image_sectors[DEVICES], shift;
static struct file *op_file;
static uint8_t target[6];
static uint32_t server_ip;
static double think;
static int reads_only;
static uint32_t nbd_port;
static struct ring aoe, ip;
static int arp;
static uint8_t heads[BATCH][64], payload[BATCH][MOST_SECTORS * SECTOR];
static struct mmsghdr messages[BATCH];
static struct iovec parts[BATCH][2];
static uint32_t batched;
static uint16_t by_ip[65536];
static uint64_t histogram[MEASURED][BUCKETS], counted[MEASURED], worst_ns[MEASURED];
static uint64_t wrong, failed, stray, again_dhcp, again_tftp, again_ipxe, again_aoe, again_http, again_find, sent_aoe,
    read_bytes, written_bytes, tftp_bytes, http_bytes, up_bytes, down_bytes;

/* Measuring */

static void note(enum measured what, int64_t ns)
{
    uint64_t value = ns > 0 ? (uint64_t)ns : 0;
    uint32_t lift = 0;
    while ((value >> lift) >= 2 * OCTAVE)
        lift++;
    histogram[what][lift * OCTAVE + (value >> lift)]++;
    counted[what]++;
    if (value > worst_ns[what])
        worst_ns[what] = value;
}

static double bucket_us(uint32_t index)
{
    uint32_t lift = index < 2 * OCTAVE ? 0 : index / OCTAVE - 1;
    return (double)((uint64_t)(index - lift * OCTAVE) << lift) / 1e3;
}

static struct client *client_of(const uint8_t *mac)
{
    uint32_t number = ((uint32_t)mac[4] << 8 | mac[5]) - first_mac;
    return number < client_count && !memcmp(mac, clients[number].mac, 4) ? &clients[number] : NULL;
}

/* Sending */

static void flush(void)
{
    for (uint32_t out = 0; out < batched;) {
        int code = sendmmsg(aoe.fd, messages + out, batched - out, 0);
        if (code < 0 && errno != EINTR && errno != ENOBUFS && errno != EAGAIN)
            die("sendmmsg");
        out += code > 0 ? (uint32_t)code : 0;
    }
    batched = 0;
}

/* The next header of the batch, with `bytes` of payload behind it. */
static struct ata *put_aoe(const struct client *client, uint32_t bytes)
{
    if (batched == BATCH)
        flush();
    struct ata *head = (struct ata *)heads[batched];
    memset(head, 0, 60);
    memcpy(head->dst, target, 6);
    memcpy(head->src, client->mac, 6);
    head->ethertype = htons(ETHERTYPE_AOE);
    head->version_flags = 0x10;
    parts[batched][0].iov_len = bytes ? HEAD : 60;
    parts[batched][1].iov_len = bytes;
    messages[batched].msg_hdr.msg_iovlen = bytes ? 2 : 1;
    up_bytes += bytes ? HEAD + bytes : 60;
    batched++;
    sent_aoe++;
    return head;
}

static void send_packet(struct client *client)
{
    if (send(ip.fd, client->packet, client->packet_bytes, 0) < 0 && errno != ENOBUFS && errno != EAGAIN)
        die("send");
    up_bytes += client->packet_bytes;
}

static void address_of(const struct client *client, uint32_t device, struct ata *head)
{
    uint32_t shelf = 16, slot = device;
    if (device == CONFIG && config_shelf) {
        shelf = config_shelf + client->number / 240;
        slot = client->number % 240;
    }
    head->shelf = htons((uint16_t)shelf);
    head->slot = (uint8_t)slot;
}

static int device_at(const struct client *client, const struct ata *head)
{
    for (uint32_t device = 0; device < DEVICES; device++) {
        struct ata want;
        address_of(client, device, &want);
        if ((devices_mask >> device & 1) && want.shelf == head->shelf && want.slot == head->slot)
            return (int)device;
    }
    return -1;
}

/* Linux's tag: a number of 15 bits, and the time in ticks of 4 ms. */
static uint32_t new_tag(struct client *client, int64_t now)
{
    client->tag = (client->tag + 1) & 0x7FFF;
    return client->tag << 16 | (uint32_t)((now / 4000000) & 0xFFFF);
}

static void ask_config(struct client *client, int device)
{
    struct ata *head = put_aoe(client, 0);
    memset(head->dst, 0xFF, 6);
    head->command = 1;
    if (device < 0) {
        head->shelf = 0xFFFF;
        head->slot = 0xFF;
    } else {
        address_of(client, (uint32_t)device, head);
    }
}

/* Data: what was written, and what must be read */

/* The first word of a sector; word i is this plus i times STEP: as in bench/pattern.py. */
#define STEP UINT64_C(0x9E3779B97F4A7C15)
static inline uint64_t word(uint64_t export, uint64_t lba)
{
    return (export + 1) * UINT64_C(0xD1B54A32D192ED03) + lba * UINT64_C(0xBF58476D1CE4E5B9)
         + UINT64_C(0x94D049BB133111EB);
}

static void fill(uint8_t *data, uint32_t export, uint64_t lba, uint32_t count)
{
    for (uint32_t s = 0; s < count; s++)
        for (uint64_t i = 0; i < SECTOR / 8; i++) {
            uint64_t value = word(export, lba + s) + i * STEP;
            memcpy(data + s * SECTOR + i * 8, &value, 8);
        }
}

static int64_t place(uint64_t lba)
{
    uint32_t low = 0, high = changed_count;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (changed[middle] < lba)
            low = middle + 1;
        else
            high = middle;
    }
    return low < changed_count && changed[low] == lba ? (int64_t)low : -1;
}

static void mark(uint8_t *bits, uint64_t lba, uint32_t sectors)
{
    for (uint32_t s = 0; s < sectors; s++) {
        int64_t at = place(lba + s);
        bits[at / 8] |= (uint8_t)(1 << at % 8);
    }
}

static int is_right(const struct client *client, uint32_t device, const uint8_t *data, uint64_t lba,
                    uint32_t sectors)
{
    if (device == REPORT)
        return 1;
    if (lba + sectors > image_sectors[device])
        return 0;
    const uint8_t *want = image[device] + lba * SECTOR;
    if (!memcmp(data, want, sectors * SECTOR))
        return 1;
    if (device != CONFIG)
        return 0;
    for (uint32_t s = 0; s < sectors; s++) {
        uint8_t own[SECTOR];
        int64_t at = place(lba + s);
        int issued = at >= 0 && (client->issued[at / 8] >> at % 8 & 1);
        int written = at >= 0 && (client->written[at / 8] >> at % 8 & 1);
        fill(own, client->number, lba + s, 1);
        int new = issued && !memcmp(data + s * SECTOR, own, SECTOR);
        int old = !written && !memcmp(data + s * SECTOR, want + s * SECTOR, SECTOR);
        if (!new && !old)
            return 0;
    }
    return 1;
}

/* Time */

static int64_t thinking(uint32_t us)
{
    return (int64_t)((double)us * 1000 * think);
}

static void set_deadline(struct client *client)
{
    int64_t next = client->timer;
    if (client->tick && (!next || client->tick < next))
        next = client->tick;
    deadlines[client - clients] = next ? next : INT64_MAX;
}

#endif
