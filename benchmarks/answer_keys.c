/* A process in the guest that answers keys: each press and release that it reads from the virtio keyboard's event device
   is a byte written to port 0xE9, 'd' or 'u'. 'K' says that it is ready. It is the ramdisk's command and never ends. */
#include <fcntl.h>
#include <linux/input.h>
#include <stdio.h>
#include <string.h>
#include <sys/io.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define DEBUG_CONSOLE 0xE9
#define DEVICES 32

static int open_keyboard(void)
{
    char path[64], name[256];

    for (int number = 0; number < DEVICES; number++) {
        int fd;

        snprintf(path, sizeof(path), "/dev/input/event%d", number);
        fd = open(path, O_RDONLY);
        if (fd < 0)
            continue;
        if (ioctl(fd, EVIOCGNAME(sizeof(name)), name) >= 0 && strstr(name, "Virtio Keyboard"))
            return fd;
        close(fd);
    }
    return -1;
}

int main(void)
{
    struct input_event events[64];
    int fd;

    if (ioperm(DEBUG_CONSOLE, 1, 1) < 0)
        return 1;
    while ((fd = open_keyboard()) < 0)
        usleep(10000);
    outb('K', DEBUG_CONSOLE);
    for (;;) {
        ssize_t size = read(fd, events, sizeof(events));

        if (size < 0)
            return 2;
        for (size_t n = 0; n < size / sizeof(*events); n++)
            if (events[n].type == EV_KEY)
                outb(events[n].value ? 'd' : 'u', DEBUG_CONSOLE);
    }
}
