/* What comes back: AoE, DHCP, TFTP and NBD replies compared and taken, ARP questions answered. */
#ifndef BENCH_STORM_REPLIES_H
#define BENCH_STORM_REPLIES_H

#include "storm_ops.h"

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
    down_bytes += size;
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
    down_bytes += size;
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
        down_bytes += (uint32_t)got;
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

#endif
