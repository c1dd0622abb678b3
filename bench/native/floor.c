/* The floor: the least loop that answers AoE reads out of an AF_PACKET ring. It looks at nothing
   but the LBA and the count, so it is no server, only what the kernel's part of one costs.

   floor interface=eth0 image=PATH [spin_us=50] [frames=8192] [batch=32]
   Says "ready" once it listens; a line of JSON on SIGUSR1, and when SIGTERM ends it. */
#include "ring.h"

#include <fcntl.h>
#include <sys/stat.h>

static volatile sig_atomic_t ended, asked;

static void on_signal(int number)
{
    if (number == SIGTERM)
        ended = 1;
    asked = 1;
}

int main(int argc, char **argv)
{
    enum { MOST = 128 };
    static struct mmsghdr messages[MOST];
    static struct iovec parts[MOST][2];
    static struct ata heads[MOST];
    const char *interface = text_arg(argc, argv, "interface", "eth0");
    int image = open(text_arg(argc, argv, "image", NULL), O_RDONLY | O_CLOEXEC);
    int64_t spin = (int64_t)number_arg(argc, argv, "spin_us", 50) * 1000;
    uint32_t batch = (uint32_t)number_arg(argc, argv, "batch", 32);
    uint64_t replies = 0, batches = 0, drops = 0;
    int64_t spun = 0, idle_since = 0;
    struct stat state;
    struct sigaction action = {.sa_handler = on_signal};

    if (image < 0 || fstat(image, &state))
        die("image");
    const uint8_t *data = mmap(NULL, (size_t)state.st_size, PROT_READ, MAP_SHARED, image, 0);
    if (data == MAP_FAILED)
        die("image");
    if (batch > MOST)
        batch = MOST;
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGUSR1, &action, NULL);
    struct ring ring =
        open_ring(interface, (uint32_t)number_arg(argc, argv, "frames", 8192), 128, 0, 0);
    for (uint32_t i = 0; i < MOST; i++) {
        parts[i][0] = (struct iovec){&heads[i], sizeof heads[i]};
        messages[i].msg_hdr.msg_iov = parts[i];
        messages[i].msg_hdr.msg_iovlen = 2;
    }
    puts("ready");
    fflush(stdout);
    while (!ended || asked) {
        uint32_t count = 0, size;
        const struct ata *request;
        if (asked) {
            asked = 0;
            drops += ring_lost(&ring);
            printf("{\"replies\": %lu, \"batches\": %lu, \"spin_ns\": %ld, \"drops\": %lu}\n",
                   replies, batches, spun, drops);
            fflush(stdout);
        }
        while (count < batch && (request = (struct ata *)ring_frame(&ring, 0, &size))) {
            struct ata *reply = &heads[count];
            *reply = *request;
            memcpy(reply->dst, request->src, 6);
            memcpy(reply->src, request->dst, 6);
            reply->version_flags |= RESPONSE;
            reply->status = 0x40;
            parts[count][1].iov_base = (void *)(data + get_lba(request) * SECTOR);
            parts[count][1].iov_len = (size_t)request->count * SECTOR;
            ring_release(&ring, 1);
            count++;
        }
        if (count) {
            if (idle_since) {
                int64_t idle = now_ns() - idle_since;
                spun += idle < spin ? idle : spin;
                idle_since = 0;
            }
            for (uint32_t sent = 0; sent < count;) {
                int code = sendmmsg(ring.fd, messages + sent, count - sent, 0);
                if (code < 0 && errno != EINTR && errno != ENOBUFS)
                    die("sendmmsg");
                sent += code > 0 ? (uint32_t)code : 0;
            }
            replies += count;
            batches++;
            continue;
        }
        if (!idle_since)
            idle_since = now_ns();
        if (now_ns() - idle_since < spin) {
            for (int i = 0; i < 8; i++)
                relax();
            continue;
        }
        struct pollfd ready = {ring.fd, POLLIN, 0};
        spun += spin;
        idle_since = 0;
        poll(&ready, 1, 1000);
    }
    return 0;
}
