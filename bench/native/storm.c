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
#include "storm_linux.h"
#include "storm_wire.h"
#include "storm_nbd.h"

#include <net/ethernet.h>
#include <sys/stat.h>

enum {
    BATCH = 64, HEAD = 36, MOST_SECTORS = 16, DEVICES = 5, CONFIG = 3, REPORT = 4, FRAMES = 128, BIOS = 64,
    FREE = 0, OUT, OVERDUE, IDENTIFY = 0xFFFF, IPXE_WAIT_MS = 250, OCTAVE = 64, BUCKETS = 64 * OCTAVE,
};
enum kind { DHCP = 1, TFTP, FIND, SINGLE, DISKS, READ, WRITE, TELL, RUNNING };
enum measured { M_SINGLE, M_READ, M_WRITE, M_DHCP, M_TFTP, MEASURED };
static const char *const measured_names[] = {"ipxe", "read", "write", "dhcp", "tftp"};

struct op {
    uint8_t kind, device;
    uint16_t extra;             /* bytes of its blob; DHCP: the device field says whether to broadcast */
    uint32_t count;             /* sectors, or bytes of a file */
    uint64_t lba;               /* TFTP: block size; DISKS: bits of the disks that it waits for */
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
    uint64_t image_lba;         /* where it begins in the image that it is compared with */
    uint32_t sectors;           /* in each frame; 0: not found yet */
    uint16_t queue[BIOS], head, queued;
    uint8_t overdue[FRAMES], overdue_head, overdue_count;
    uint8_t up;
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
static uint32_t client_count, op_count, first_mac, devices_mask, config_shelf, mtu_sectors, running;
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
static uint64_t wrong, failed, stray, again_dhcp, again_tftp, again_ipxe, again_aoe, again_find, sent_aoe, read_bytes,
    written_bytes, tftp_bytes, wire_bytes;
static int64_t cpu_now;

static void advance(struct client *client, int64_t now);

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
    wire_bytes += bytes ? HEAD + bytes : 60;
    batched++;
    sent_aoe++;
    return head;
}

static void send_packet(struct client *client)
{
    if (send(ip.fd, client->packet, client->packet_bytes, 0) < 0 && errno != ENOBUFS && errno != EAGAIN)
        die("send");
    wire_bytes += client->packet_bytes;
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

/* The kernel's disks */

static void send_frame(struct client *client, uint32_t slot, int64_t now)
{
    struct frame *frame = &client->frames[slot];
    uint32_t bytes = frame->writes ? frame->sectors * SECTOR : 0u;
    struct ata *head = put_aoe(client, bytes);
    frame->tag = new_tag(client, now);
    frame->sent = now;
    frame->state = OUT;
    client->slot_of[client->tag & 255] = (uint8_t)slot;
    client->disks[frame->device].path.out++;
    address_of(client, frame->device, head);
    if (reads_only)
        head->slot = 0;
    head->tag = htonl(frame->tag);
    head->count = frame->sectors;
    if (frame->bio == IDENTIFY) {
        head->status = 0xEC;
        head->lba[3] = 0xA0;
        return;
    }
    head->aflags = frame->writes ? 0x41 : 0x40;
    head->status = frame->writes ? 0x34 : 0x24;
    uint64_t lba = frame->lba + (reads_only && frame->device == 1 ? shift : 0);
    memcpy(head->lba, &lba, 6);
    if (!bytes)
        return;
    const struct op *op = &ops[client->bios[frame->bio].op];
    uint8_t *data = payload[batched - 1];
    if (op->kind == TELL) {
        uint32_t from = (uint32_t)(frame->lba - op->lba) * SECTOR;
        uint32_t left = op->extra > from ? op->extra - from : 0;
        memset(data, 0, bytes);
        memcpy(data, blobs + op->blob + from, left < bytes ? left : bytes);
    } else {
        fill(data, client->number, frame->lba, frame->sectors);
        mark(client->issued, frame->lba, frame->sectors);
    }
}

static int take_free(struct client *client)
{
    return client->free_count ? client->free[--client->free_count] : -1;
}

/* Send what the window allows: first what is overdue, then what is queued. */
static void pump(struct client *client, struct disk *disk, int64_t now)
{
    struct path *path = &disk->path;
    while (disk->overdue_count && path->out < path->window) {
        uint32_t slot = disk->overdue[disk->overdue_head];
        disk->overdue_head = (uint8_t)((disk->overdue_head + 1) % FRAMES);
        disk->overdue_count--;
        if (client->frames[slot].state != OVERDUE)
            continue; /* its reply came after all */
        again_aoe++;
        send_frame(client, slot, now);
    }
    while (disk->queued && path->out < path->window) {
        uint32_t number = disk->queue[disk->head];
        struct bio *bio = &client->bios[number];
        int slot = take_free(client);
        if (slot < 0)
            return;
        struct frame *frame = &client->frames[slot];
        frame->bio = (uint16_t)number;
        frame->device = bio->device;
        frame->writes = ops[bio->op].kind != READ;
        frame->lba = bio->lba;
        frame->sectors = (uint8_t)(bio->left < disk->sectors ? bio->left : disk->sectors);
        bio->lba += frame->sectors;
        bio->left -= frame->sectors;
        bio->busy++;
        if (!bio->left) {
            disk->head = (uint16_t)((disk->head + 1) % BIOS);
            disk->queued--;
        }
        send_frame(client, (uint32_t)slot, now);
    }
}

static void found_disk(struct client *client, uint32_t device, uint32_t bufcnt, uint32_t sectors, int64_t now)
{
    struct disk *disk = &client->disks[device];
    if (disk->sectors) {
        path_offered(&disk->path, bufcnt);
        return;
    }
    path_found(&disk->path, bufcnt);
    disk->sectors = sectors < mtu_sectors ? sectors : mtu_sectors;
    if (!disk->sectors)
        disk->sectors = 2;
    if (!client->tick)
        client->tick = now + TICK_MS * 1000000;
    if (reads_only) {
        disk->up = 1;
        return;
    }
    int slot = take_free(client);
    if (slot < 0)
        return;
    client->frames[slot] = (struct frame){.bio = IDENTIFY, .device = (uint8_t)device, .sectors = 1};
    send_frame(client, (uint32_t)slot, now);
}

/* Every 100 ms: what is overdue is queued to be sent again. */
static void tick(struct client *client, int64_t now)
{
    client->tick = now + TICK_MS * 1000000;
    for (uint32_t slot = 0; slot < FRAMES; slot++) {
        struct frame *frame = &client->frames[slot];
        struct disk *disk = &client->disks[frame->device];
        if (frame->state != OUT || (now - frame->sent) / 1000 < path_timeout(&disk->path))
            continue;
        path_lost(&disk->path);
        frame->state = OVERDUE;
        disk->path.out--;
        disk->overdue[(disk->overdue_head + disk->overdue_count++) % FRAMES] = (uint8_t)slot;
    }
    for (uint32_t device = 0; device < DEVICES; device++)
        pump(client, &client->disks[device], now);
}

/* One operation after the other */

static void end_op(struct client *client, uint32_t number, int64_t now)
{
    int64_t us = (now - client->begun) / 1000;
    client->ended[number] = us > 0 ? (uint32_t)us : 1;
}

/* The operation at `at` is over, the next may begin. */
static void next_op(struct client *client, int64_t now)
{
    end_op(client, client->at, now);
    client->at++;
    client->stage = 0;
    client->timer = 0;
    advance(client, now);
}

static void ask_single(struct client *client, int64_t now)
{
    const struct op *op = &ops[client->at];
    uint32_t left = op->count - client->done;
    struct ata *head = put_aoe(client, 0);
    client->single_lba = op->lba + client->done;
    client->single_sectors = (uint8_t)(left < 2 ? left : 2);
    client->single_tag = new_tag(client, now);
    client->asked = now;
    client->timer = now + (int64_t)client->wait_ms * 1000000;
    client->stage = 2;
    address_of(client, op->device, head);
    head->tag = htonl(client->single_tag);
    head->aflags = 0x40;
    head->status = 0x24;
    head->count = client->single_sectors;
    memcpy(head->lba, &client->single_lba, 6);
}

static void ask_identify(struct client *client, int64_t now)
{
    struct ata *head = put_aoe(client, 0);
    client->single_tag = new_tag(client, now);
    client->stage = 2;
    client->asked = now;
    client->timer = now + (int64_t)client->wait_ms * 1000000;
    address_of(client, ops[client->at].device, head);
    head->tag = htonl(client->single_tag);
    head->count = 1;
    head->status = 0xEC;
}

static void ask_dhcp(struct client *client, int type)
{
    const struct op *op = &ops[client->at];
    struct dhcp_asks asks = {
        .mac = client->mac, .options = blobs + op->blob, .options_bytes = op->extra, .xid = client->xid,
        .wanted = client->ip, .server = client->server, .type = type, .broadcast = op->device,
    };
    client->packet_bytes = put_dhcp(client->packet, &asks);
    send_packet(client);
}

static void begin_nbd(struct client *client, const struct op *op)
{
    for (uint32_t device = 0; device < DEVICES; device++) {
        if (!(op->lba & devices_mask & 1u << device))
            continue;
        client->connections[device] =
            (struct connection){.client = client->number, .device = (uint8_t)device};
        nbd_connect(&client->connections[device], server_ip, nbd_port);
    }
}

static void begin(struct client *client, int64_t now)
{
    const struct op *op = &ops[client->at];
    client->stage = 1;
    client->done = 0;
    client->turns++;
    client->asked = now;
    switch (op->kind) {
    case DHCP:
        client->xid = htonl(client->number << 8 | (client->turns & 0xFF));
        client->wait_ms = 1000;
        client->timer = now + 1000000000;
        ask_dhcp(client, DISCOVER);
        break;
    case TFTP:
        client->port = (uint16_t)(2048 + client->turns % 60000);
        client->peer_port = 0;
        client->wait_ms = 1000;
        client->timer = now + 1000000000;
        client->packet_bytes =
            put_read_request(client->packet, target, client->mac, client->ip, server_ip, client->port,
                             op_file[client->at].name, (uint32_t)op->lba);
        send_packet(client);
        break;
    case FIND:
        client->wait_ms = IPXE_WAIT_MS;
        client->timer = now + IPXE_WAIT_MS * 1000000;
        ask_config(client, op->device);
        break;
    case SINGLE:
        client->wait_ms = IPXE_WAIT_MS;
        ask_single(client, now);
        break;
    case DISKS:
        if (nbd_port) {
            begin_nbd(client, op);
            break;
        }
        client->wait_ms = TICK_MS;
        client->timer = now + TICK_MS * 1000000;
        ask_config(client, -1);
        break;
    default:
        break;
    }
}

static void send_nbd(struct client *client, const struct op *op, uint32_t number)
{
    int writes = op->kind != READ;
    uint32_t bytes = op->count * SECTOR;
    if (bytes > sizeof piece)
        die("a request of the trace is too long for NBD");
    if (writes) {
        fill(piece, client->number, op->lba, op->count);
        mark(client->issued, op->lba, op->count);
    }
    nbd_request(&client->connections[op->device], writes, number, op->lba, bytes, piece);
    wire_bytes += NBD_REQUEST + (writes ? bytes : 0);
}

/* A read or write of the kernel goes to its disk's queue; 0 if there is no room for one more. */
static int queue_bio(struct client *client, const struct op *op, int64_t now)
{
    struct disk *disk = &client->disks[op->device];
    if (disk->queued == BIOS)
        return 0;
    for (uint32_t i = 0; i < BIOS; i++) {
        struct bio *bio = &client->bios[i];
        if (bio->used)
            continue;
        *bio = (struct bio){now, op->lba, op->count, 0, client->at, op->device, 1};
        client->unfinished++;
        if (nbd_port) {
            send_nbd(client, op, i);
            return 1;
        }
        disk->queue[(disk->head + disk->queued++) % BIOS] = (uint16_t)i;
        return 1;
    }
    return 0;
}

static void run(struct client *client, int64_t now)
{
    client->ran = now;
    client->tick = client->timer = 0;
    running++;
}

/* Begin every operation that may begin by now. */
static void advance(struct client *client, int64_t now)
{
    uint32_t pumped = 0;
    while (client->at < op_count && !client->stage) {
        const struct op *op = &ops[client->at];
        int disks = op->kind == READ || op->kind == WRITE || op->kind == TELL;
        int skips = (disks && !(devices_mask >> op->device & 1)) ||
                    (reads_only && op->kind != SINGLE && op->kind != READ && op->kind != RUNNING);
        if (skips) {
            if (op->kind == DISKS)
                for (uint32_t device = 0; device < DEVICES; device++)
                    found_disk(client, device, MAXOUT, mtu_sectors, now);
            end_op(client, client->at++, now);
            continue;
        }
        if ((!disks && client->unfinished) || (op->after && !client->ended[op->after - 1]))
            break; /* a reply comes first */
        int64_t ready = client->begun + (op->after ? (int64_t)client->ended[op->after - 1] * 1000 : 0);
        ready += thinking(op->think_us);
        if (now < ready) {
            client->timer = ready;
            break;
        }
        client->timer = 0;
        if (disks) {
            if (!queue_bio(client, op, now))
                break;
            pumped |= 1u << op->device;
            client->at++;
        } else if (op->kind == RUNNING) {
            end_op(client, client->at++, now);
            run(client, now);
        } else {
            begin(client, now);
        }
    }
    for (uint32_t device = 0; pumped >> device; device++)
        if (pumped >> device & 1)
            pump(client, &client->disks[device], now);
    set_deadline(client);
}

/* A time has come: to begin something, or to send something again. */
static void wake(struct client *client, int64_t now)
{
    if (client->tick && now >= client->tick)
        tick(client, now);
    if (!client->timer || now < client->timer) {
        set_deadline(client);
        return;
    }
    client->timer = 0;
    if (!client->stage) {
        advance(client, now);
        return;
    }
    const struct op *op = &ops[client->at];
    if (client->stage == 3) { /* iPXE has computed, and asks for the next */
        ask_single(client, now);
        set_deadline(client);
        return;
    }
    client->wait_ms *= 2;
    switch (op->kind) {
    case DHCP:
        again_dhcp++;
        send_packet(client);
        break;
    case TFTP:
        again_tftp++;
        if (client->wait_ms > 8000) { /* firmware gives the transfer up, and asks for the file again */
            begin(client, now);
            set_deadline(client);
            return;
        }
        send_packet(client);
        break;
    case FIND:
        again_ipxe++;
        if (client->stage == 1)
            ask_config(client, op->device);
        else
            ask_identify(client, now);
        break;
    case SINGLE:
        again_ipxe++;
        ask_single(client, now);
        break;
    case DISKS:
        again_find++;
        if (client->wait_ms > 1000)
            client->wait_ms = 1000;
        ask_config(client, -1);
        break;
    default:
        break;
    }
    client->timer = now + (int64_t)client->wait_ms * 1000000;
    set_deadline(client);
}

/* Replies */

static struct client *client_of(const uint8_t *mac)
{
    uint32_t number = ((uint32_t)mac[4] << 8 | mac[5]) - first_mac;
    return number < client_count && !memcmp(mac, clients[number].mac, 4) ? &clients[number] : NULL;
}

static void take_config(struct client *client, const struct ata *head, uint32_t size, int64_t now)
{
    const uint8_t *body = (const uint8_t *)head + 24;
    const struct op *op = &ops[client->at];
    int device = device_at(client, head);
    if (size < 32 || client->ran || client->at >= op_count)
        return;
    if (op->kind == FIND && client->stage == 1 && device == op->device) {
        client->wait_ms = IPXE_WAIT_MS;
        ask_identify(client, now);
        set_deadline(client);
    } else if (device >= 0 && ((op->kind == DISKS && client->stage) || client->disks[device].sectors)) {
        found_disk(client, (uint32_t)device, get16(body), body[4], now);
        set_deadline(client);
    }
}

static void finish_frame(struct client *client, uint32_t slot, int64_t now)
{
    struct frame *frame = &client->frames[slot];
    struct disk *disk = &client->disks[frame->device];
    frame->state = FREE;
    client->free[client->free_count++] = (uint8_t)slot;
    if (frame->bio == IDENTIFY) {
        disk->up = 1;
        uint32_t need = ops[client->at].kind == DISKS ? (uint32_t)ops[client->at].lba & devices_mask : 0;
        int all = need != 0;
        for (uint32_t device = 0; device < DEVICES; device++)
            all &= !(need >> device & 1) || client->disks[device].up;
        if (all)
            next_op(client, now);
        return;
    }
    struct bio *bio = &client->bios[frame->bio];
    if (--bio->busy || bio->left) {
        pump(client, disk, now);
        return;
    }
    end_op(client, bio->op, now);
    bio->used = 0;
    client->unfinished--;
    pump(client, disk, now);
    advance(client, now);
}

static int frame_with(struct client *client, uint32_t tag)
{
    uint32_t slot = client->slot_of[tag >> 16 & 255];
    if (client->frames[slot].tag == tag && client->frames[slot].state != FREE)
        return (int)slot;
    for (slot = 0; slot < FRAMES; slot++)
        if (client->frames[slot].tag == tag && client->frames[slot].state != FREE)
            return (int)slot;
    return -1;
}

static void take_single(struct client *client, const struct ata *head, uint32_t size, int64_t now)
{
    const struct op *op = &ops[client->at];
    const uint8_t *data = (const uint8_t *)head + HEAD;
    if (op->kind == FIND) {
        if (size < HEAD + SECTOR || (head->status & 1))
            failed++;
        next_op(client, now);
        return;
    }
    note(M_SINGLE, now - client->asked);
    if (head->status & 1)
        failed++;
    else if (size < HEAD + client->single_sectors * (uint32_t)SECTOR ||
             !is_right(client, op->device, data, client->single_lba, client->single_sectors))
        wrong++;
    read_bytes += client->single_sectors * SECTOR;
    client->done += client->single_sectors;
    client->wait_ms = IPXE_WAIT_MS;
    if (client->done >= op->count) {
        next_op(client, now);
        return;
    }
    if (thinking(op->pace_us)) {
        client->stage = 3;
        client->timer = now + thinking(op->pace_us);
    } else {
        ask_single(client, now);
    }
    set_deadline(client);
}

static void take_aoe(const uint8_t *data, uint32_t size, int64_t now)
{
    const struct ata *head = (const struct ata *)data;
    struct client *client = client_of(head->dst);
    uint32_t tag = ntohl(head->tag);
    wire_bytes += size;
    if (!client || client->ran || memcmp(head->src, target, 6) || size < (head->command == 1 ? 32 : HEAD)) {
        stray++;
        return;
    }
    if (head->version_flags & 4) { /* Linux and iPXE wait for a better one */
        failed++;
        return;
    }
    if (head->command == 1) {
        take_config(client, head, size, now);
        return;
    }
    const struct op *op = &ops[client->at];
    if (client->stage == 2 && (op->kind == SINGLE || op->kind == FIND)) {
        if (tag == client->single_tag)
            take_single(client, head, size, now);
        else
            stray++;
        return;
    }
    int slot = frame_with(client, tag);
    if (slot < 0) {
        stray++;
        return;
    }
    struct frame *frame = &client->frames[slot];
    struct disk *disk = &client->disks[frame->device];
    path_heard(&disk->path, (now - frame->sent) / 1000, frame->state == OUT);
    if (frame->state == OUT)
        disk->path.out--;
    if (head->status & 0xA9) {
        failed++;
    } else if (frame->bio == IDENTIFY) {
        if (size < HEAD + SECTOR)
            failed++;
    } else if (frame->writes) {
        if (frame->device == CONFIG)
            mark(client->written, frame->lba, frame->sectors);
        written_bytes += frame->sectors * SECTOR;
        note(M_WRITE, now - frame->sent);
    } else {
        if (size < HEAD + frame->sectors * (uint32_t)SECTOR ||
            !is_right(client, frame->device, data + HEAD, frame->lba, frame->sectors))
            wrong++;
        read_bytes += frame->sectors * SECTOR;
        note(M_READ, now - frame->sent);
    }
    finish_frame(client, (uint32_t)slot, now);
}

static void take_dhcp(const uint8_t *dhcp, uint32_t size, int64_t now)
{
    struct client *client = size >= DHCP_FIXED ? client_of(dhcp + 28) : NULL;
    if (!client || client->at >= op_count || ops[client->at].kind != DHCP || !client->stage ||
        memcmp(dhcp + 4, &client->xid, 4) || dhcp[0] != 2)
        return;
    const uint8_t *type = dhcp_option(dhcp, size, 53, 1), *server = dhcp_option(dhcp, size, 54, 4);
    if (!type || !server)
        return;
    if (*type == OFFER && client->stage == 1) {
        note(M_DHCP, now - client->asked);
        memcpy(&client->ip, dhcp + 16, 4);
        memcpy(&client->server, server, 4);
        client->stage = 2;
        client->asked = now;
        client->wait_ms = 1000;
        client->timer = now + 1000000000;
        ask_dhcp(client, REQUEST);
        set_deadline(client);
    } else if (*type == ACK && client->stage == 2) {
        note(M_DHCP, now - client->asked);
        memcpy(&client->ip, dhcp + 16, 4);
        by_ip[ntohl(client->ip) & 0xFFFF] = (uint16_t)(client->number + 1);
        next_op(client, now);
    }
}

static void acknowledge(struct client *client, uint32_t block, int64_t now)
{
    uint8_t *tftp = client->packet + IP_HEAD;
    put16(tftp, 4);
    put16(tftp + 2, block & 0xFFFF);
    client->packet_bytes = put_udp(client->packet, target, client->mac, client->ip, server_ip, client->port,
                                   client->peer_port, 4);
    client->asked = now;
    client->wait_ms = 1000;
    client->timer = now + 1000000000;
    send_packet(client);
}

static void take_tftp(struct client *client, const uint8_t *udp, uint32_t size, int64_t now)
{
    const struct op *op = &ops[client->at];
    const struct file *file = &op_file[client->at];
    uint32_t code = get16(udp + 8), bytes = size - 12, peer = get16(udp);
    if (op->kind != TFTP || !client->stage || get16(udp + 2) != client->port ||
        (client->peer_port && client->peer_port != peer))
        return;
    if (code == 6 && client->stage == 1) {
        client->stage = 2;
        client->peer_port = (uint16_t)peer;
        acknowledge(client, 0, now);
    } else if (code == 3 && get16(udp + 10) == ((client->done + 1) & 0xFFFF)) {
        uint64_t at = (uint64_t)client->done * op->lba;
        note(M_TFTP, now - client->asked);
        if (at + bytes > file->bytes || memcmp(udp + 12, file->data + at, bytes))
            wrong++;
        tftp_bytes += bytes;
        client->stage = 2;
        client->peer_port = (uint16_t)peer;
        client->done++;
        acknowledge(client, client->done, now);
        if (bytes < op->lba) {
            if (at + bytes != file->bytes)
                wrong++;
            next_op(client, now);
            return;
        }
    } else if (code == 5) {
        failed++;
        client->timer = 0;
    }
    set_deadline(client);
}

static void take_ip(const uint8_t *data, uint32_t size, int64_t now)
{
    if (size < IP_HEAD + 4 || data[14] != 0x45 || data[23] != 17)
        return;
    const uint8_t *udp = data + 34;
    uint32_t bytes = get16(udp + 4);
    wire_bytes += size;
    if (bytes < 12 || bytes + 34 > size)
        return;
    if (get16(udp + 2) == 68) {
        take_dhcp(udp + 8, bytes - 8, now);
        return;
    }
    struct client *client = client_of(data);
    if (client && client->at < op_count)
        take_tftp(client, udp, bytes, now);
}

/* NBD */

static void nbd_head(struct connection *connection, int64_t now)
{
    struct client *client = &clients[connection->client];
    char name[32];
    connection->have = 0;
    if (connection->state == GREETING) {
        if (memcmp(connection->head, "NBDMAGICIHAVEOPT", 16))
            die("no NBD server");
        snprintf(name, sizeof name, connection->device == CONFIG ? "config-%u" : "root", client->number);
        nbd_name(connection, name);
        connection->state = NAMING;
        return;
    }
    if (connection->state == NAMING) {
        uint32_t need = (uint32_t)ops[client->at].lba & devices_mask;
        int all = 1;
        connection->state = READY;
        for (uint32_t device = 0; device < DEVICES; device++)
            all &= !(need >> device & 1) || client->connections[device].state == READY;
        if (all)
            next_op(client, now);
        return;
    }
    connection->bio = (uint32_t)get64(connection->head + 8) % BIOS;
    if (get16(connection->head + 4) || get16(connection->head + 6))
        failed++;
    const struct bio *bio = &client->bios[connection->bio];
    const struct op *op = &ops[bio->op];
    connection->at = op->lba * SECTOR;
    connection->left = op->kind == READ ? op->count * SECTOR : 0;
}

static void nbd_done(struct connection *connection, int64_t now)
{
    struct client *client = &clients[connection->client];
    struct bio *bio = &client->bios[connection->bio];
    const struct op *op = &ops[bio->op];
    if (op->kind == READ) {
        read_bytes += op->count * SECTOR;
    } else {
        written_bytes += op->count * SECTOR;
        mark(client->written, op->lba, op->count);
    }
    note(op->kind == READ ? M_READ : M_WRITE, now - bio->sent);
    end_op(client, bio->op, now);
    bio->used = 0;
    client->unfinished--;
    advance(client, now);
}

/* Data is compared as it comes, in whole sectors: `piece` begins where one does. */
static void take_nbd(struct connection *connection, int64_t now)
{
    static const uint32_t heads[] = {NBD_HELLO, NBD_EXPORT, NBD_REPLY};
    for (;;) {
        struct client *client = &clients[connection->client];
        ssize_t got;
        if (connection->left) {
            uint32_t want = connection->left < sizeof piece ? connection->left : (uint32_t)sizeof piece;
            got = recv(connection->fd, piece, want, MSG_DONTWAIT | MSG_PEEK);
            uint32_t sectors = got > 0 ? (uint32_t)got / SECTOR : 0;
            if (got > 0 && !sectors)
                return; /* the rest of a sector comes soon */
            if (got > 0 && !is_right(client, connection->device, piece, connection->at / SECTOR, sectors))
                wrong++;
            if (got > 0)
                got = recv(connection->fd, piece, sectors * SECTOR, 0);
            if (got > 0) {
                connection->at += (uint32_t)got;
                connection->left -= (uint32_t)got;
            }
        } else {
            uint32_t need = heads[connection->state] - connection->have;
            got = recv(connection->fd, connection->head + connection->have, need, MSG_DONTWAIT);
            if (got > 0 && (connection->have += (uint32_t)got) < heads[connection->state])
                continue;
            uint32_t before = connection->state;
            if (got > 0)
                nbd_head(connection, now);
            if (got > 0 && before != READY)
                continue;
        }
        if (got < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (got <= 0)
            die("the NBD server closed a connection");
        wire_bytes += (uint32_t)got;
        if (!connection->left)
            nbd_done(connection, now);
    }
}

static uint32_t poll_nbd(int64_t now)
{
    struct epoll_event events[64];
    int ready = poller < 0 ? 0 : epoll_wait(poller, events, 64, 0);
    for (int i = 0; i < ready; i++)
        take_nbd(events[i].data.ptr, now);
    return ready > 0 ? (uint32_t)ready : 0;
}

/* Who has this address? The client that leased it. */
static void answer_arp(void)
{
    uint8_t frame[64];
    while (recv(arp, frame, sizeof frame, MSG_DONTWAIT) >= 42) {
        uint32_t asked;
        memcpy(&asked, frame + 38, 4);
        uint32_t number = by_ip[ntohl(asked) & 0xFFFF];
        if (get16(frame + 20) != 1 || !number || clients[number - 1].ip != asked)
            continue;
        uint8_t reply[60] = {0};
        const uint8_t *mac = clients[number - 1].mac;
        memcpy(reply, frame + 22, 6);
        memcpy(reply + 6, mac, 6);
        memcpy(reply + 12, frame + 12, 8);
        put16(reply + 20, 2);
        memcpy(reply + 22, mac, 6);
        memcpy(reply + 28, &asked, 4);
        memcpy(reply + 32, frame + 22, 10);
        if (send(arp, reply, sizeof reply, 0) < 0 && errno != ENOBUFS)
            die("send");
    }
}

/* Beginning and end */

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
        if (ops[i].kind != TFTP)
            continue;
        char full[4096], *name = strndup((const char *)blobs + ops[i].blob, ops[i].extra);
        snprintf(full, sizeof full, "%s/%s", files, name);
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
    printf("\"again\": {\"dhcp\": %lu, \"tftp\": %lu, \"ipxe\": %lu, \"aoe\": %lu}, \"asked_again\": %lu, ",
           again_dhcp, again_tftp, again_ipxe, again_aoe, again_find);
    printf("\"read_bytes\": %lu, \"written_bytes\": %lu, \"tftp_bytes\": %lu, \"wire_bytes\": %lu, ", read_bytes,
           written_bytes, tftp_bytes, wire_bytes);
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
    aoe = open_ring(interface, most + most / 2 + 1024, (HEAD + mtu_sectors * SECTOR + 80 + 127) / 128 * 128, 1);
    ip = open_ring_for(interface, ETHERTYPE_IP, 2 * client_count + 1024,
                       (MOST_PACKET + 80 + 127) / 128 * 128, 0);
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
    lost = ring_lost(&aoe) + ring_lost(&ip);
    cpu_now = cpu_ns();
    say(start, now, cpu_now - own - idle, lost);
    return 0;
}
