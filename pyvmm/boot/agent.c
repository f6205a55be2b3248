/* The agent in a guest: runs commands for who is at the other end of a port (docs/consoles.md).
 *
 *     agent /dev/vport1p1
 *
 * A frame is a type, a length of 24 bits, little-endian, and so many bytes; a type of 0 is a frame of one byte that says
 * nothing. From the host come
 *     B  nonce        begin: what runs is killed, and H answers
 *     A  bytes        more of the words of a command, each of which ends with NUL
 *     R               run it
 *     I  bytes        its standard input, not more than ROOM ahead of C;     E  that has ended
 * and to the host go
 *     H  nonce        here I am
 *     O, X  bytes     standard output and standard error;     C  4 bytes: so much of the input has been taken
 *     S  4 bytes      the exit status, 128 + n for signal n
 * It is one process, has no libc, and allocates nothing. scripts/build-agent makes the program beside this file.
 * Linux: drivers/char/virtio_console.c says SIGIO when the host's end opens or closes, and POLLHUP while it is closed. */

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long u64;

enum { READ, WRITE, OPEN, CLOSE, POLL = 7, RT_SIGPROCMASK = 14, DUP2 = 33, GETPID = 39, FORK = 57, EXECVE = 59, EXIT = 60,
    WAIT4 = 61, KILL = 62, FCNTL = 72, SETSID = 112, SIGNALFD4 = 289, PIPE2 = 293 };
enum { EINTR = 4, EAGAIN = 11, ENOENT = 2 };
enum { O_RDWR = 2, O_NONBLOCK = 04000, O_ASYNC = 020000, O_CLOEXEC = 02000000 };
enum { F_SETFL = 4, F_SETOWN = 8, WNOHANG = 1, SIGKILL = 9, SIGPIPE = 13, SIGCHLD = 17, SIGIO = 29, SIG_SETMASK = 2 };
enum { POLLIN = 1, POLLOUT = 4, POLLHUP = 16 };
enum { LONGEST = 4096, ROOM = 65536, WORDS = 131072, CHUNK = 32768, MOST_WORDS = 4096, MOST_LEFT = 64 };

static long call4(long number, long a, long b, long c, long d)
{
    register long r10 __asm__("r10") = d;
    long result;

    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
    return result;
}
#define CALL(number, a, b, c) call4(number, (long)(a), (long)(b), (long)(c), 0)

struct pollfd { int fd; short events, revents; };

static char **environment;
static int port, signals, away;              /* away: nobody is at the host's end */
static u8 frame[4 + LONGEST];                /* what has come of the next one */
static u32 have;
static char words[WORDS];
static u32 words_length;
static int child, in = -1, out = -1, err = -1;
static u8 input[ROOM];                       /* of the child, a ring */
static u32 input_first, input_length;
static int input_ended;
static u8 output[4 + CHUNK];

void *memcpy(void *to, const void *from, u64 length)
{
    u8 *t = to;
    const u8 *f = from;

    while (length--)
        *t++ = *f++;
    return to;
}

static short look(int fd, short events, long milliseconds)
{
    struct pollfd one = {fd, events, 0};

    CALL(POLL, &one, 1, milliseconds);
    return one.revents;
}

/* Send output[0..4+length), whose payload is there. Nobody takes it: it is lost. */
static void send(u8 type, u32 length)
{
    u32 done = 0;

    output[0] = type;
    output[1] = length;
    output[2] = length >> 8;
    output[3] = length >> 16;
    while (done < 4 + length && !away) {
        long written = CALL(WRITE, port, output + done, 4 + length - done);
        if (written > 0) {
            done += written;
        } else if (written == -EAGAIN || written == -EINTR) {
            away = (look(port, POLLOUT, 1000) & POLLHUP) != 0;
        } else {
            away = 1;
        }
    }
}

static void send_number(u8 type, u32 value)
{
    memcpy(output + 4, &value, 4);
    send(type, 4);
}

static void shut(int *fd)
{
    if (*fd >= 0)
        CALL(CLOSE, *fd, 0, 0);
    *fd = -1;
}

/* Whether there was something. */
static int pass_on(int *fd, u8 type)
{
    long length;

    if (*fd < 0)
        return 0;
    length = CALL(READ, *fd, output + 4, CHUNK);
    if (length > 0)
        send(type, length);
    else if (length != -EAGAIN && length != -EINTR)
        shut(fd);
    return length > 0;
}

static void feed(void)
{
    u32 piece, taken = 0;
    long written;

    while (in >= 0 && input_length) {
        piece = ROOM - input_first < input_length ? ROOM - input_first : input_length;
        written = CALL(WRITE, in, input + input_first, piece);
        if (written == -EAGAIN || written == -EINTR)
            break;
        if (written < 0) {                   /* it reads no more: what comes is lost */
            shut(&in);
            break;
        }
        input_first = (input_first + written) % ROOM;
        input_length -= written;
        taken += written;
    }
    if (in < 0) {
        taken += input_length;
        input_length = 0;
    }
    if (taken)
        send_number('C', taken);
    if (input_ended && !input_length)
        shut(&in);
}

static void forget(void)
{
    shut(&in);
    shut(&out);
    shut(&err);
    child = 0;
    words_length = input_length = input_first = input_ended = 0;
}

static void kill_child(void)
{
    if (child) {
        CALL(KILL, -child, SIGKILL, 0);
        CALL(KILL, child, SIGKILL, 0);       /* it may not have its session yet */
        call4(WAIT4, child, 0, 0, 0);
    }
    forget();
}

static u32 text_length(const char *text)
{
    u32 length = 0;

    while (text[length])
        length++;
    return length;
}

static void execute(char **argv)
{
    static char path[LONGEST];
    const char *from = "/bin:/sbin:/usr/bin:/usr/sbin";
    char **one, *slash = argv[0];
    u32 length;

    while (*slash && *slash != '/')
        slash++;
    if (*slash) {
        CALL(EXECVE, argv[0], argv, environment);
    } else {
        for (one = environment; *one; one++)
            if ((*one)[0] == 'P' && (*one)[1] == 'A' && (*one)[2] == 'T' && (*one)[3] == 'H' && (*one)[4] == '=')
                from = *one + 5;
        while (*from) {
            for (length = 0; from[length] && from[length] != ':'; length++)
                ;
            if (length && length + text_length(argv[0]) + 2 < sizeof(path)) {
                memcpy(path, from, length);
                path[length] = '/';
                memcpy(path + length + 1, argv[0], text_length(argv[0]) + 1);
                CALL(EXECVE, path, argv, environment);
            }
            from += from[length] ? length + 1 : length;
        }
    }
    CALL(WRITE, 2, argv[0], text_length(argv[0]));
    CALL(WRITE, 2, ": cannot be executed\n", 21);
    CALL(EXIT, 127, 0, 0);
}

static void run(void)
{
    static char *argv[MOST_WORDS + 1];
    int pipes[3][2], n, count = 0;
    u32 at = 0;
    u64 none = 0;

    if (child || !words_length || words[words_length - 1])
        return;
    while (at < words_length && count < MOST_WORDS) {
        argv[count++] = words + at;
        at += text_length(words + at) + 1;
    }
    argv[count] = 0;
    for (n = 0; n < 3; n++)
        if (CALL(PIPE2, pipes[n], O_CLOEXEC, 0) < 0) {
            while (n--) {
                CALL(CLOSE, pipes[n][0], 0, 0);
                CALL(CLOSE, pipes[n][1], 0, 0);
            }
            send_number('S', 126);
            forget();
            return;
        }
    child = CALL(FORK, 0, 0, 0);
    if (!child) {
        CALL(SETSID, 0, 0, 0);
        CALL(DUP2, pipes[0][0], 0, 0);
        CALL(DUP2, pipes[1][1], 1, 0);
        CALL(DUP2, pipes[2][1], 2, 0);
        call4(RT_SIGPROCMASK, SIG_SETMASK, (long)&none, 0, 8);
        execute(argv);
    }
    CALL(CLOSE, pipes[0][0], 0, 0);
    CALL(CLOSE, pipes[1][1], 0, 0);
    CALL(CLOSE, pipes[2][1], 0, 0);
    in = pipes[0][1];
    out = pipes[1][0];
    err = pipes[2][0];
    CALL(FCNTL, in, F_SETFL, O_NONBLOCK);
    CALL(FCNTL, out, F_SETFL, O_NONBLOCK);
    CALL(FCNTL, err, F_SETFL, O_NONBLOCK);
    if (child < 0) {
        send_number('S', 126);
        forget();
    }
}

/* Children have ended: ours may be one of them. What it has left running may write without end. */
static void reap(void)
{
    int status, more = MOST_LEFT;
    long pid;

    while ((pid = call4(WAIT4, -1, (long)&status, WNOHANG, 0)) > 0)
        if (pid == child) {
            while (!away && more-- && (pass_on(&out, 'O') | pass_on(&err, 'X')))
                ;
            send_number('S', status & 0x7F ? 128 + (status & 0x7F) : status >> 8 & 0xFF);
            forget();
        }
}

static void obey(u8 type, const u8 *data, u32 length)
{
    u32 n;

    switch (type) {
    case 'B':
        kill_child();
        memcpy(output + 4, data, length);
        send('H', length);
        break;
    case 'A':
        if (!child && words_length + length <= WORDS) {
            memcpy(words + words_length, data, length);
            words_length += length;
        }
        break;
    case 'R':
        run();
        break;
    case 'I':
        if (child && input_length + length <= ROOM) {
            for (n = 0; n < length; n++)
                input[(input_first + input_length + n) % ROOM] = data[n];
            input_length += length;
            feed();
        }
        break;
    case 'E':
        if (child) {
            input_ended = 1;
            feed();
        }
        break;
    }
}

/* All frames that are whole; what is no frame of ours is left out byte by byte. */
static void parse(void)
{
    u32 at = 0, length;

    while (at < have) {
        if (!frame[at]) {
            at++;
            continue;
        }
        if (have - at < 4)
            break;
        length = frame[at + 1] | frame[at + 2] << 8 | frame[at + 3] << 16;
        if (length > LONGEST) {
            at++;
            continue;
        }
        if (have - at < 4 + length)
            break;
        obey(frame[at], frame + at + 4, length);
        at += 4 + length;
    }
    have -= at;
    for (length = 0; length < have; length++)
        frame[length] = frame[at + length];
}

static void hear(void)
{
    long length = CALL(READ, port, frame + have, sizeof(frame) - have);

    if (length > 0) {
        have += length;
        parse();
    } else if (length != -EAGAIN && length != -EINTR) {
        away = 1;
        have = 0;
        kill_child();
    }
}

__attribute__((used)) static void start(u64 *stack)
{
    static u8 info[128];
    char **arguments = (char **)(stack + 1);
    u64 mask = 1UL << (SIGCHLD - 1) | 1UL << (SIGIO - 1) | 1UL << (SIGPIPE - 1);

    environment = arguments + stack[0] + 1;
    if (stack[0] != 2 || (port = CALL(OPEN, arguments[1], O_RDWR | O_NONBLOCK | O_CLOEXEC, 0)) < 0)
        CALL(EXIT, 1, 0, 0);
    call4(RT_SIGPROCMASK, SIG_SETMASK, (long)&mask, 0, 8);
    signals = call4(SIGNALFD4, -1, (long)&mask, 8, O_NONBLOCK | O_CLOEXEC);
    CALL(FCNTL, port, F_SETOWN, CALL(GETPID, 0, 0, 0));
    CALL(FCNTL, port, F_SETFL, O_RDWR | O_NONBLOCK | O_ASYNC);
    for (;;) {
        struct pollfd polled[5] = {{signals, POLLIN, 0}, {away ? -1 : port, POLLIN, 0}, {out, POLLIN, 0}, {err, POLLIN, 0},
            {input_length ? in : -1, POLLOUT, 0}};

        CALL(POLL, polled, 5, away ? 1000 : -1);
        if (away)
            away = (look(port, 0, 0) & POLLHUP) != 0;
        while (CALL(READ, signals, info, sizeof(info)) > 0)
            ;
        if (polled[1].revents)
            hear();
        if (polled[2].revents)
            pass_on(&out, 'O');
        if (polled[3].revents)
            pass_on(&err, 'X');
        if (polled[4].revents)
            feed();
        reap();
    }
}

__asm__(".globl _start\n_start: mov %rsp, %rdi\nand $-16, %rsp\ncall start\n");
