# The kernel as the keeper sees it. Every extern of the native code is declared here.

from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <errno.h>
    #include <fcntl.h>
    #include <limits.h>
    #include <linux/sched.h>
    #include <poll.h>
    #include <signal.h>
    #include <stdio.h>
    #include <stdlib.h>
    #include <string.h>
    #include <sys/epoll.h>
    #include <sys/ioctl.h>
    #include <sys/mman.h>
    #include <sys/prctl.h>
    #include <sys/resource.h>
    #include <sys/signalfd.h>
    #include <sys/socket.h>
    #include <sys/stat.h>
    #include <sys/syscall.h>
    #include <sys/uio.h>
    #include <sys/un.h>
    #include <sys/wait.h>
    #include <time.h>
    #include <unistd.h>

    /* glibc 2.35 has epoll_pwait2; the call itself is there since Linux 5.11. */
    static inline int ds_epoll_wait(int epoll, struct epoll_event *events, int most,
                                    const struct timespec *limit) {
        return (int)syscall(SYS_epoll_pwait2, epoll, events, most, limit, NULL, 0);
    }
    static inline int ds_clone3(struct clone_args *args) {
        return (int)syscall(SYS_clone3, args, sizeof(*args));
    }
    static inline void ds_number(char *text, size_t size, int number) {
        snprintf(text, size, "%d", number);
    }
    static inline int ds_pidfd_open(int pid) {
        return (int)syscall(SYS_pidfd_open, pid, 0);
    }
    static inline int ds_pidfd_send_signal(int pidfd, int number) {
        return (int)syscall(SYS_pidfd_send_signal, pidfd, number, NULL, 0);
    }
    static inline int ds_close_range(unsigned first, unsigned last, unsigned flags) {
        return (int)syscall(SYS_close_range, first, last, flags);
    }
    /* Not signal(3): glibc keeps 32 and 33 for itself, but they, too, may be inherited ignored.
       All zero is SIG_DFL; the kernel's set of signals has 8 bytes. */
    static inline int ds_default_signal(int number) {
        char action[64] = {0};
        return (int)syscall(SYS_rt_sigaction, number, action, NULL, 8);
    }
    #ifndef P_PIDFD
    #define P_PIDFD 3
    #endif
    #ifndef CLOSE_RANGE_CLOEXEC
    #define CLOSE_RANGE_CLOEXEC 4
    #endif
    """

cdef extern from * nogil:
    ctypedef int pid_t
    ctypedef unsigned int mode_t
    ctypedef unsigned int socklen_t
    ctypedef unsigned long long rlim_t

    # errno.h
    int EAGAIN, EBADF, EBUSY, ECHILD, ECONNRESET, EEXIST, EINTR, EINVAL, EIO, EMFILE, ENFILE
    int EALREADY, EDQUOT, EMSGSIZE, ENAMETOOLONG, ENOBUFS, ENOENT, ENOSPC, EPERM, EPIPE, EPROTO
    int ESRCH

    # unistd.h, fcntl.h
    ssize_t read(int fd, void *buffer, size_t count)
    ssize_t write(int fd, const void *buffer, size_t count)
    ssize_t pread(int fd, void *buffer, size_t count, long offset)
    ssize_t pwrite(int fd, const void *buffer, size_t count, long offset)
    int ftruncate(int fd, long length)
    char **environ
    int open(const char *path, int flags, ...)
    int openat(int directory, const char *path, int flags, ...)
    int renameat(int old_directory, const char *old, int new_directory, const char *new)
    int unlinkat(int directory, const char *path, int flags)
    long lseek(int fd, long offset, int whence)
    int close(int fd)
    int dup2(int old, int new)
    int chdir(const char *path)
    pid_t fork()
    pid_t getpid()
    pid_t getppid()
    int execve(const char *path, char *const argv[], char *const envp[])
    void _exit(int status)
    unsigned int geteuid()
    int fcntl(int fd, int command, ...)
    int fallocate(int fd, int mode, long offset, long length)
    ssize_t splice(int source, void *offset_in, int sink, void *offset_out, size_t count,
                   unsigned int flags)
    int F_GETFD, F_SETFD, FD_CLOEXEC
    int F_DUPFD_CLOEXEC, F_GETFL, F_SETFL, F_SETPIPE_SZ, F_GET_SEALS, F_ADD_SEALS
    int F_SEAL_SEAL, F_SEAL_WRITE, F_SEAL_SHRINK, F_SEAL_GROW
    int O_APPEND, O_CLOEXEC, O_CREAT, O_EXCL, O_NOFOLLOW, O_NONBLOCK, O_RDWR, O_WRONLY
    int SPLICE_F_MOVE, SPLICE_F_NONBLOCK, AT_SYMLINK_NOFOLLOW, SEEK_CUR

    # sys/stat.h
    struct stat_t "stat":
        uint64_t st_dev
        uint64_t st_ino
        mode_t st_mode
        uint64_t st_nlink
        long long st_size
    int fstat(int fd, stat_t *result)
    int fstatat(int directory, const char *path, stat_t *result, int flags)
    int fchmod(int fd, mode_t mode)
    bint S_ISFIFO(mode_t mode)
    bint S_ISCHR(mode_t mode)
    bint S_ISREG(mode_t mode)
    bint S_ISDIR(mode_t mode)
    mode_t umask(mode_t mask)

    # sys/ioctl.h
    struct winsize:
        unsigned short ws_row
        unsigned short ws_col
    int ioctl(int fd, unsigned long request, ...)
    unsigned long TIOCSWINSZ, FIONREAD

    # time.h
    struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec *result)
    int CLOCK_MONOTONIC, CLOCK_REALTIME

    # sys/epoll.h, poll.h
    union epoll_data_t:
        uint64_t u64
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epoll, int operation, int fd, epoll_event *event)
    int ds_epoll_wait(int epoll, epoll_event *events, int most, const timespec *limit)
    int EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLL_CTL_DEL
    uint32_t EPOLLIN, EPOLLOUT, EPOLLERR, EPOLLHUP, EPOLLRDHUP, EPOLLET
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *fds, unsigned long count, int timeout)
    short POLLIN, POLLOUT, POLLERR

    # signal.h, sys/signalfd.h
    ctypedef struct sigset_t:
        pass
    struct signalfd_siginfo:
        uint32_t ssi_signo
    int sigemptyset(sigset_t *mask)
    int sigfillset(sigset_t *mask)
    int sigaddset(sigset_t *mask, int number)
    int sigprocmask(int how, const sigset_t *mask, sigset_t *old)
    int signalfd(int fd, const sigset_t *mask, int flags)
    ctypedef void (*handler_t)(int) noexcept
    handler_t signal(int number, handler_t handler)
    handler_t SIG_DFL
    int SIGCHLD, SIGTERM, SIGKILL, SIG_SETMASK
    int SFD_CLOEXEC, SFD_NONBLOCK

    # sys/wait.h
    pid_t wait4(pid_t pid, int *status, int options, void *usage)
    ctypedef struct siginfo_t:
        pid_t si_pid
    int waitid(int kind, unsigned int id, siginfo_t *info, int options)
    int WNOHANG, WNOWAIT, WEXITED, P_PIDFD
    int WALL "__WALL"
    bint WIFSIGNALED(int status)
    int WEXITSTATUS(int status)
    int WTERMSIG(int status)

    # sys/mman.h
    void *mmap(void *address, size_t length, int protection, int flags, int fd, long offset)
    int munmap(void *address, size_t length)
    int madvise(void *address, size_t length, int advice)
    int memfd_create(const char *name, unsigned int flags)
    int PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_SHARED, MAP_ANONYMOUS, MAP_NORESERVE
    int MADV_DONTNEED
    unsigned int MFD_CLOEXEC, MFD_ALLOW_SEALING
    void *MAP_FAILED

    # sys/uio.h, sys/socket.h, sys/un.h
    struct iovec:
        void *iov_base
        size_t iov_len
    ssize_t writev(int fd, const iovec *vectors, int count)
    struct msghdr:
        iovec *msg_iov
        size_t msg_iovlen
        void *msg_control
        size_t msg_controllen
        int msg_flags
    struct cmsghdr:
        size_t cmsg_len
        int cmsg_level
        int cmsg_type
    struct sockaddr:
        pass
    struct sockaddr_un:
        unsigned short sun_family
        char sun_path[108]
    struct ucred:
        pid_t pid
        unsigned int uid
        unsigned int gid
    int socket(int domain, int type, int protocol)
    int socketpair(int domain, int type, int protocol, int pair[2])
    int accept4(int fd, void *address, void *length, int flags)
    int connect(int fd, const sockaddr *address, socklen_t length)
    int shutdown(int fd, int how)
    int getsockopt(int fd, int level, int name, void *value, socklen_t *length)
    ssize_t sendmsg(int fd, const msghdr *message, int flags)
    ssize_t recvmsg(int fd, msghdr *message, int flags)
    cmsghdr *CMSG_FIRSTHDR(msghdr *message)
    void *CMSG_DATA(cmsghdr *header)
    size_t CMSG_SPACE(size_t length)
    size_t CMSG_LEN(size_t length)
    int AF_UNIX, SOCK_STREAM, SOCK_SEQPACKET, SOCK_CLOEXEC, SOCK_NONBLOCK, SOL_SOCKET
    int SO_ACCEPTCONN, SO_DOMAIN, SO_PEERCRED, SCM_RIGHTS, MSG_CTRUNC, MSG_TRUNC, MSG_NOSIGNAL
    int MSG_CMSG_CLOEXEC, SHUT_RD, SHUT_WR

    # sys/resource.h, sys/prctl.h
    struct rlimit:
        rlim_t rlim_cur
        rlim_t rlim_max
    int getrlimit(int resource, rlimit *limit)
    int setrlimit(int resource, const rlimit *limit)
    int RLIMIT_NOFILE
    int prctl(int option, ...)
    int PR_SET_CHILD_SUBREAPER, PR_SET_PDEATHSIG, PR_SET_NAME

    # linux/sched.h, linux/close_range.h, sys/syscall.h
    struct clone_args:
        uint64_t flags
        uint64_t pidfd
    uint64_t CLONE_PARENT, CLONE_PIDFD, CLONE_CLEAR_SIGHAND
    int ds_clone3(clone_args *args)
    int ds_default_signal(int number)
    int ds_pidfd_open(int pid)
    int ds_pidfd_send_signal(int pidfd, int number)
    int ds_close_range(unsigned first, unsigned last, unsigned flags)
    unsigned CLOSE_RANGE_CLOEXEC

    # gcc's and clang's own
    int lowest_bit "__builtin_ctzll"(unsigned long long bits)

    # string.h, stdio.h
    void ds_number(char *text, size_t size, int number)
    void *memcpy(void *target, const void *source, size_t count)
    void *memmove(void *target, const void *source, size_t count)
    void *memset(void *target, int value, size_t count)
    void *memchr(const void *text, int value, size_t count)
    int memcmp(const void *one, const void *other, size_t count)
