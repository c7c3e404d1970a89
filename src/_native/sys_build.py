"""Builds shim._sys: system calls that Python 3.11 lacks, for cold paths.

cffi in API mode: the C compiler checks every declaration and constant against the headers,
and the interpreter's lock is released during each call. errno is in `ffi.errno` afterwards.
`shim.syscalls` is the only module that imports the result.
"""

from cffi import FFI

ffibuilder = FFI()

ffibuilder.set_source(
    "shim._sys",
    """
    #include <fcntl.h>
    #include <linux/loop.h>
    #include <linux/openat2.h>
    #include <linux/sched.h>
    #include <errno.h>
    #include <poll.h>
    #include <stdio.h>
    #include <string.h>
    #include <sys/socket.h>
    #include <sched.h>
    #include <signal.h>
    #include <sys/inotify.h>
    #include <sys/ioctl.h>
    #include <sys/mount.h>
    #include <sys/prctl.h>
    #include <sys/syscall.h>
    #include <sys/wait.h>
    #include <unistd.h>

    /* What follows has no function in every libc that has the rest. */

    static int ds_openat2(int directory, const char *path, uint64_t flags, uint64_t resolve)
    {
        struct open_how how = {.flags = flags, .resolve = resolve};
        return syscall(SYS_openat2, directory, path, &how, sizeof(how));
    }

    /* A copy of the mount that path is on, from path on; it is nowhere attached. */
    static int ds_clone_tree(const char *path, int recursive)
    {
        unsigned flags = 1 /* OPEN_TREE_CLONE */ | O_CLOEXEC | (recursive ? AT_RECURSIVE : 0);
        return syscall(SYS_open_tree, AT_FDCWD, path, flags);
    }

    static int ds_map_tree(int tree, int user_namespace, int read_only)
    {
        uint64_t set = 0x100000 /* MOUNT_ATTR_IDMAP */;
        set |= read_only ? 1 /* MOUNT_ATTR_RDONLY */ : 0;
        uint64_t attributes[4] = {set, 0, 0, user_namespace};
        unsigned flags = AT_EMPTY_PATH | AT_RECURSIVE;
        return syscall(SYS_mount_setattr, tree, "", flags, attributes, sizeof(attributes));
    }

    static int ds_attach_tree(int tree, const char *path)
    {
        unsigned flags = 4 /* MOVE_MOUNT_F_EMPTY_PATH */ | 0x10 /* MOVE_MOUNT_T_SYMLINKS */;
        return syscall(SYS_move_mount, tree, "", AT_FDCWD, path, flags);
    }

    /* A packet of the channel: `record`, with three descriptors, two of them a FIFO's ends. */
    struct ds_parcel {
        int channel, other, fifo, input, error;
        const void *record;
        size_t size;
    };

    static int ds_send_three(const struct ds_parcel *parcel, const int *passed)
    {
        union { char bytes[CMSG_SPACE(3 * sizeof(int))]; struct cmsghdr align; } control = {{0}};
        struct iovec vector = {(void *)parcel->record, parcel->size};
        struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1};
        struct pollfd writable = {.fd = parcel->channel, .events = POLLOUT};
        struct cmsghdr *header;
        message.msg_control = control.bytes;
        message.msg_controllen = CMSG_LEN(3 * sizeof(int));
        header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(3 * sizeof(int));
        memcpy(CMSG_DATA(header), passed, 3 * sizeof(int));
        while (sendmsg(parcel->channel, &message, MSG_NOSIGNAL) < 0) {
            if (errno == EAGAIN)
                poll(&writable, 1, -1);
            else if (errno != EINTR)
                return errno;
        }
        return 0;
    }

    /* Runs in a process of its own, whose descriptors end with it; the memory is the caller's. */
    static int ds_open_and_send(void *argument)
    {
        struct ds_parcel *parcel = argument;
        char path[32];
        int reading, writing;
        snprintf(path, sizeof(path), "/proc/self/fd/%d", parcel->fifo);
        /* The reader first: without one, a non-blocking open for writing fails (fifo(7)). */
        reading = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
        writing = reading < 0 ? -1 : open(path, O_WRONLY | O_NONBLOCK | O_CLOEXEC);
        if (writing < 0) {
            parcel->error = errno;
        } else {
            int output[3] = {parcel->other, writing, reading};
            int input[3] = {reading, parcel->other, writing};
            parcel->error = ds_send_three(parcel, parcel->input ? input : output);
        }
        return 0;
    }

    /* Open both ends of a FIFO and send them away with a record, beside `other`: its source, or
       with `input` its sink. Were we killed between the one and the other, the FIFO's client, whom
       the opening has woken, would see an end that is none. Hence a process of its own does it,
       which is not killed with us: as after vfork(2), it has our memory, and we wait for it. */
    static int ds_send_fifo(int channel, const void *record, size_t size, int other, int fifo,
                            int input)
    {
        struct ds_parcel parcel = {channel, other, fifo, input, ECHILD, record, size};
        _Alignas(16) char stack[32768];
        sigset_t every, before;
        int error = 0;
        pid_t pid;
        sigfillset(&every);    /* no handler of ours runs in it */
        pthread_sigmask(SIG_SETMASK, &every, &before);
        pid = clone(ds_open_and_send, stack + sizeof(stack), CLONE_VM | CLONE_VFORK, &parcel);
        if (pid < 0)
            error = errno;
        while (pid > 0 && waitpid(pid, NULL, __WALL) < 0 && errno == EINTR)
            ;
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        errno = error ? error : parcel.error;
        return errno ? -1 : 0;
    }

    static int ds_make_core_cookie(void)
    {
        return prctl(62 /* PR_SCHED_CORE */, 1 /* CREATE */, 0, 2 /* of the process group */, 0);
    }

    /* Start a process that does nothing but be in a new user namespace. Its end sends no signal. */
    static int ds_be_in_user_namespace(void)
    {
        struct clone_args arguments = {.flags = CLONE_NEWUSER};
        pid_t parent = getpid();
        pid_t pid = syscall(SYS_clone3, &arguments, sizeof(arguments));
        if (pid == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            while (getppid() == parent)
                pause();
            _exit(0);
        }
        return pid;
    }
    """,
)

ffibuilder.cdef(
    """
    #define MS_RDONLY ...
    #define MS_NOSUID ...
    #define MS_NODEV ...
    #define MS_NOEXEC ...
    #define MS_SYNCHRONOUS ...
    #define MS_REMOUNT ...
    #define MS_MANDLOCK ...
    #define MS_DIRSYNC ...
    #define MS_NOATIME ...
    #define MS_NODIRATIME ...
    #define MS_BIND ...
    #define MS_REC ...
    #define MS_UNBINDABLE ...
    #define MS_PRIVATE ...
    #define MS_SLAVE ...
    #define MS_SHARED ...
    #define MS_RELATIME ...
    #define MS_STRICTATIME ...
    #define MNT_DETACH ...
    #define UMOUNT_NOFOLLOW ...
    #define CLONE_NEWNS ...
    #define CLONE_FS ...
    #define RESOLVE_IN_ROOT ...
    #define RESOLVE_NO_MAGICLINKS ...
    #define LOOP_CTL_GET_FREE ...
    #define LOOP_CONFIGURE ...
    #define LO_FLAGS_READ_ONLY ...
    #define LO_FLAGS_AUTOCLEAR ...
    #define TIOCGPTN ...
    #define IN_CLOEXEC ...
    #define IN_NONBLOCK ...
    #define IN_MODIFY ...
    #define IN_IGNORED ...
    #define IN_Q_OVERFLOW ...

    struct loop_info64 {
        uint32_t lo_flags;
        uint8_t lo_file_name[64];
        ...;
    };
    struct loop_config {
        uint32_t fd;
        struct loop_info64 info;
        ...;
    };

    #define __WALL ...

    int ds_clone_tree(const char *path, int recursive);
    int ds_map_tree(int tree, int user_namespace, int read_only);
    int ds_attach_tree(int tree, const char *path);
    int ds_be_in_user_namespace(void);
    int ds_make_core_cookie(void);
    int ds_openat2(int directory, const char *path, uint64_t flags, uint64_t resolve);
    int mount(const char *source, const char *target, const char *type,
              unsigned long flags, const void *data);
    int umount2(const char *target, int flags);
    int unshare(int flags);
    int setns(int fd, int nstype);
    int ds_send_fifo(int channel, const void *record, size_t size, int other, int fifo,
                     int input);
    int inotify_init1(int flags);
    int inotify_add_watch(int fd, const char *path, uint32_t mask);
    int inotify_rm_watch(int fd, int watch);
    """
)
