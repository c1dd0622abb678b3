/* A client's operations, one after the other or side by side: begun, waited for, begun again. */
#ifndef BENCH_STORM_OPS_H
#define BENCH_STORM_OPS_H

#include "storm_tcp.h"

static void end_op(struct client *client, uint32_t number, int64_t now)
{
    int64_t us = (now - client->begun) / 1000;
    client->ended[number] = us > 0 ? (uint32_t)us : 1;
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
    case HTTP:
        begin_http(client, now);
        break;
    case DISKS:
        leave_tcp(client);
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
    up_bytes += NBD_REQUEST + (writes ? bytes : 0);
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

/* The operation at `at` is over, the next may begin. */
static void next_op(struct client *client, int64_t now)
{
    end_op(client, client->at, now);
    client->at++;
    client->stage = 0;
    client->timer = 0;
    advance(client, now);
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
    case HTTP: /* not heard: what opens the connection, or the request */
        again_http++;
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

#endif
