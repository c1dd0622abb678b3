/* A client's disks as Linux drives them: frames, windows, what is overdue. */
#ifndef BENCH_STORM_DISKS_H
#define BENCH_STORM_DISKS_H

#include "storm_room.h"

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

#endif
