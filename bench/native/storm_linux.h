/* What Linux's aoe driver (v81 to v85, drivers/block/aoe) decides for one disk behind one MAC: how
   long it waits for a reply, and how many frames it has out. Facts, in our own words:

   - The average starts at 250 ms and takes in 1/256 of each new error, the deviation starts at what
     makes 16 s and takes in 1/8. The timeout is two averages and one (scaled) deviation, so a frame
     that is lost before anything was heard costs 16.5 s.
   - A timer looks every 100 ms. A frame that is overdue goes to the queue of those to be sent again;
     the window falls to one, and the threshold to half of what the window was.
   - The window starts at half of what the target offers (at most aoe_maxout, 64), grows by one for
     each reply up to the threshold, then by one each time a whole window was out. */
#ifndef BENCH_STORM_LINUX_H
#define BENCH_STORM_LINUX_H

#include <stdint.h>

enum { MAXOUT = 64, TICK_MS = 100, AVG_SCALE = 8, DEV_SCALE = 3, AVG_START = 250000 << AVG_SCALE };

struct path {
    int32_t average, deviation;   /* microseconds, scaled by 2^AVG_SCALE and 2^DEV_SCALE */
    uint16_t out, window, offered, threshold, turns;
};

static inline void path_shrink(struct path *path)
{
    path->window = 1;
    path->threshold = path->offered / 2;
    path->turns = path->offered;
}

/* The target was found, and offers so many. */
static inline void path_found(struct path *path, uint32_t bufcnt)
{
    path->average = AVG_START;
    path->deviation = AVG_START / 4;
    path->out = 0;
    path->offered = (uint16_t)(bufcnt < MAXOUT ? bufcnt : MAXOUT);
    path_shrink(path);
    path->window = path->offered / 2;
}

/* It has said again what it offers. */
static inline void path_offered(struct path *path, uint32_t bufcnt)
{
    path->offered = (uint16_t)(bufcnt < MAXOUT ? bufcnt : MAXOUT);
    if (path->offered < path->window)
        path_shrink(path);
}

/* Microseconds after which a frame is overdue. */
static inline int64_t path_timeout(const struct path *path)
{
    int64_t wait = ((2 * (int64_t)path->average) >> AVG_SCALE) + ((8 * (int64_t)path->deviation) >> DEV_SCALE);
    return wait ? wait : 1;
}

/* A reply after so many microseconds; `counts`: to a frame that still counted as out. The frame is
   taken out of `out` afterwards. */
static inline void path_heard(struct path *path, int64_t us, int counts)
{
    int32_t error = (int32_t)us - (path->average >> AVG_SCALE);
    path->average += error;
    if (error < 0)
        error = -error;
    path->deviation += error - (path->deviation >> DEV_SCALE);
    if (!counts || path->window >= path->offered)
        return;
    if (path->window < path->threshold)
        path->window++;
    else if (path->out == path->window && path->turns-- == 0)
        path->turns = ++path->window;
}

/* A frame is overdue. */
static inline void path_lost(struct path *path)
{
    if (path->window != 1) {
        path->threshold = path->window / 2;
        path->window = 1;
    }
}

#endif
