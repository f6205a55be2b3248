/* A server in the guest that sends datagrams back (udp(7)).
 *
 *     udp_echo PORT
 *
 * Built with gcc -nostdlib -static, so that it needs nothing of the guest. */

typedef unsigned long u64;

static long call(long number, long a, long b, long c, long d, long e, long f)
{
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    long result;

    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

enum { WRITE = 1, SOCKET = 41, SENDTO = 44, RECVFROM = 45, BIND = 49, EXIT = 60 };
enum { AF_INET = 2, SOCK_DGRAM = 2 };

static struct {
    unsigned short family;
    unsigned char port[2], address[4], zero[8];
} address = {AF_INET, {0}, {0}, {0}}, peer;
static char buffer[65536];

__attribute__((used)) static void server(u64 *stack)
{
    const char *digit = (const char *)stack[2]; /* argc, argv[0], argv[1] */
    unsigned port = 0;
    long wire, length;

    for (; *digit; digit++)
        port = 10 * port + (*digit - '0');
    address.port[0] = port >> 8;
    address.port[1] = port;
    wire = call(SOCKET, AF_INET, SOCK_DGRAM, 0, 0, 0, 0);
    if (call(BIND, wire, (long)&address, sizeof(address), 0, 0, 0))
        call(EXIT, 1, 0, 0, 0, 0, 0);
    call(WRITE, 1, (long)"listening\n", 10, 0, 0, 0);
    for (;;) {
        unsigned size = sizeof(peer);

        length = call(RECVFROM, wire, (long)buffer, sizeof(buffer), 0, (long)&peer, (long)&size);
        if (length >= 0)
            call(SENDTO, wire, (long)buffer, length, 0, (long)&peer, size);
    }
}

__asm__(".globl _start\n_start: mov %rsp, %rdi\nand $-16, %rsp\ncall server\n");
