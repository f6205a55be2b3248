/* When a program makes each of its KVM ioctls, from its exec to its first KVM_RUN; there it is killed.
 *
 * usage: kvm_calls COMMAND...     a line an ioctl: "REQUEST NANOSECONDS", the request in hexadecimal
 *
 * A seccomp filter stops the program at ioctls of KVM's type (0xAE) and nowhere else, so that nothing else gets slower:
 * seccomp(2), SECCOMP_RET_TRACE; ptrace(2), PTRACE_EVENT_SECCOMP. */

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define KVM_RUN 0xAE80
#define KVM_IOCTL_TYPE 0xAE00

static long long now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void child(char **argv)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_ioctl, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1])),
        BPF_STMT(BPF_ALU | BPF_AND | BPF_K, 0xFF00),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, KVM_IOCTL_TYPE, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRACE),
    };
    struct sock_fprog program = { sizeof(filter) / sizeof(*filter), filter };

    ptrace(PTRACE_TRACEME, 0, NULL, NULL);
    raise(SIGSTOP); /* the parent sets its options, and the clock starts */
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
        perror("seccomp");
    else
        execvp(argv[0], argv);
    perror(argv[0]);
    _exit(127);
}

int main(int argc, char **argv)
{
    long long start;
    pid_t pid, first;
    int status;

    if (argc < 2)
        return 2;
    first = fork();
    if (first == 0)
        child(argv + 1);
    waitpid(first, &status, 0);
    ptrace(PTRACE_SETOPTIONS, first, NULL,
           PTRACE_O_TRACESECCOMP | PTRACE_O_TRACECLONE | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_TRACEEXEC |
               PTRACE_O_EXITKILL);
    start = now();
    ptrace(PTRACE_CONT, first, NULL, NULL);
    while ((pid = waitpid(-1, &status, __WALL)) > 0) {
        int event = status >> 16, signal = 0;
        long long at = now() - start;

        if (!WIFSTOPPED(status)) {
            if (pid == first)
                break;
            continue;
        }
        if (event == PTRACE_EVENT_SECCOMP) {
            struct user_regs_struct regs;

            ptrace(PTRACE_GETREGS, pid, NULL, &regs);
            printf("%#llx %lld\n", regs.rsi & 0xFFFFFFFF, at);
            if ((regs.rsi & 0xFFFFFFFF) == KVM_RUN) {
                kill(first, SIGKILL);
                return 0;
            }
        } else if (!event && WSTOPSIG(status) != SIGSTOP) {
            signal = WSTOPSIG(status); /* a new thread starts with a SIGSTOP, which is ours and not for it */
        }
        ptrace(PTRACE_CONT, pid, NULL, (void *)(long)signal);
    }
    fprintf(stderr, "%s ended before it ran a guest\n", argv[1]);
    return 1;
}
