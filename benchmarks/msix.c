/*
 * An NVMe command that moves no data, there and back: Get Features (Number of Queues) by way of the admin queue, whose
 * completion is a message-signalled interrupt. What it takes is the doorbell, the device, the interrupt and the wake-up.
 *
 *   msix DEVICE COUNT     DEVICE is /dev/nvme0; prints the median of COUNT round trips, in microseconds
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/nvme_ioctl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "times.h"

#define GET_FEATURES 0x0A       /* NVM Express 1.4, 5.12 */
#define NUMBER_OF_QUEUES 0x07

int main(int argc, char **argv)
{
    if (argc != 3)
        return 2;
    int count = atoi(argv[2]), device = open(argv[1], O_RDWR);
    double *took = calloc(count > 0 ? count : 1, sizeof *took);
    if (count < 1 || device < 0 || !took) {
        fprintf(stderr, "msix: %s: %s\n", argv[1], strerror(errno));
        return 1;
    }
    for (int i = 0; i < count; i++) {
        struct nvme_admin_cmd command = {.opcode = GET_FEATURES, .cdw10 = NUMBER_OF_QUEUES};
        double start = microseconds();
        if (ioctl(device, NVME_IOCTL_ADMIN_CMD, &command) != 0) {
            perror("msix: NVME_IOCTL_ADMIN_CMD");
            return 1;
        }
        took[i] = microseconds() - start;
    }
    printf("%.0f\n", median_time(took, count));
    return 0;
}
