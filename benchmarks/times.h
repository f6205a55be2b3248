/* What programs that measure in a guest have in common: a clock in microseconds, and a median. */
#include <stdlib.h>
#include <time.h>

static inline double microseconds(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1e6 + time.tv_nsec / 1e3;
}

static inline int compare_times(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Of COUNT times, which it sorts. */
static inline double median_time(double *times, int count)
{
    qsort(times, count, sizeof *times, compare_times);
    return times[count / 2];
}
