/*
 * TCP between a guest and this host.
 *
 *   net-io serve PORT            answers, a process for each connection, until it is killed
 *   net-io run NAME ADDRESS PORT measures against such a server and prints `net NAME WHAT NUMBER`:
 *                                take and give in MB/s (10^6), there-and-back in microseconds (the median)
 *
 * The client's first byte says what is wanted: t the server sends SIZE bytes, g it takes SIZE and answers with one, p it
 * sends each byte back.
 */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "times.h"

#define SIZE (16 << 20)
#define TURNS 300
#define CHUNK 65536

static char buffer[CHUNK];

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static void send_all(int fd, long size)
{
    while (size) {
        ssize_t n = write(fd, buffer, size < CHUNK ? size : CHUNK);
        if (n <= 0)
            fail("write");
        size -= n;
    }
}

static void take_all(int fd, long size)
{
    while (size) {
        ssize_t n = read(fd, buffer, size < CHUNK ? size : CHUNK);
        if (n <= 0)
            fail("read");
        size -= n;
    }
}

static void serve(int fd)
{
    char what;
    if (read(fd, &what, 1) != 1)
        return;
    if (what == 't') {
        send_all(fd, SIZE);
    } else if (what == 'g') {
        take_all(fd, SIZE);
        send_all(fd, 1);
    } else {
        while (read(fd, buffer, 1) == 1)
            send_all(fd, 1);
    }
    /* The client ends first: passt of 2023 makes little of a half that is closed. */
    while (read(fd, buffer, CHUNK) > 0)
        ;
}

static int dial(const char *address, int port, char what)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
    int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    inet_pton(AF_INET, address, &to.sin_addr);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (connect(fd, (struct sockaddr *)&to, sizeof to) < 0)
        fail("connect");
    if (write(fd, &what, 1) != 1)
        fail("write");
    return fd;
}

int main(int argc, char **argv)
{
    if (argc == 3 && !strcmp(argv[1], "serve")) {
        struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[2]))};
        int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;
        setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
        if (bind(listener, (struct sockaddr *)&at, sizeof at) < 0 || listen(listener, 16) < 0)
            fail("bind");
        signal(SIGCHLD, SIG_IGN);
        for (;;) {
            int fd = accept(listener, NULL, NULL);
            if (fd >= 0 && fork() == 0) {
                setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
                serve(fd);
                return 0;
            }
            close(fd);
        }
    }
    if (argc != 5)
        return 2;
    const char *name = argv[2], *address = argv[3];
    int port = atoi(argv[4]), fd;
    double start, took[TURNS];

    fd = dial(address, port, 'p');
    for (int i = 0; i < TURNS; i++) {
        start = microseconds();
        send_all(fd, 1);
        take_all(fd, 1);
        took[i] = microseconds() - start;
    }
    close(fd);
    printf("net %s there-and-back %.0f\n", name, median_time(took, TURNS));

    start = microseconds();
    fd = dial(address, port, 't');
    take_all(fd, SIZE);
    printf("net %s take %.1f\n", name, SIZE / (microseconds() - start));
    close(fd);

    start = microseconds();
    fd = dial(address, port, 'g');
    send_all(fd, SIZE);
    take_all(fd, 1);
    printf("net %s give %.1f\n", name, SIZE / (microseconds() - start));
    close(fd);
    return 0;
}
