/* A server in the guest that sends back what comes (AF_VSOCK, vsock(7)), one connection after the other.
 *
 *     vsock_echo PORT
 *
 * Built with gcc -nostdlib -static, so that it needs nothing of the guest. */

typedef unsigned long u64;

static long call(long number, long a, long b, long c)
{
    long result;

    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return result;
}

enum { READ, WRITE, CLOSE = 3, SOCKET = 41, ACCEPT = 43, BIND = 49, LISTEN = 50, EXIT = 60 };
enum { AF_VSOCK = 40, SOCK_STREAM = 1 };

static struct {
    unsigned short family, reserved;
    unsigned int port, cid;
    unsigned char zero[4];
} address = {AF_VSOCK, 0, 0, 0xFFFFFFFF /* VMADDR_CID_ANY */, {0}};
static char buffer[65536];

__attribute__((used)) static void server(u64 *stack)
{
    const char *digit = (const char *)stack[2]; /* argc, argv[0], argv[1] */
    long listener, client, length, done;

    for (; *digit; digit++)
        address.port = 10 * address.port + (*digit - '0');
    listener = call(SOCKET, AF_VSOCK, SOCK_STREAM, 0);
    if (call(BIND, listener, (long)&address, sizeof(address)) || call(LISTEN, listener, 1, 0))
        call(EXIT, 1, 0, 0);
    call(WRITE, 1, (long)"listening\n", 10);
    while ((client = call(ACCEPT, listener, 0, 0)) >= 0) {
        while ((length = call(READ, client, (long)buffer, sizeof(buffer))) > 0)
            for (done = 0; done < length; ) {
                long written = call(WRITE, client, (long)buffer + done, length - done);
                if (written <= 0)
                    break;
                done += written;
            }
        call(CLOSE, client, 0, 0);
    }
    call(EXIT, 2, 0, 0);
}

__asm__(".globl _start\n_start: mov %rsp, %rdi\nand $-16, %rsp\ncall server\n");
