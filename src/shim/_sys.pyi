"""What src/_native/sys_build.py builds."""

from typing import Literal

class _LoopInfo:
    lo_flags: int
    lo_file_name: bytearray

class _LoopConfig:
    fd: int
    info: _LoopInfo

class _FFI:
    errno: int
    def new(self, cdecl: Literal["struct loop_config *"]) -> _LoopConfig: ...
    def buffer(self, cdata: _LoopConfig) -> bytearray: ...

class _Lib:
    MS_RDONLY: int
    MS_NOSUID: int
    MS_NODEV: int
    MS_NOEXEC: int
    MS_SYNCHRONOUS: int
    MS_REMOUNT: int
    MS_MANDLOCK: int
    MS_DIRSYNC: int
    MS_NOATIME: int
    MS_NODIRATIME: int
    MS_BIND: int
    MS_REC: int
    MS_UNBINDABLE: int
    MS_PRIVATE: int
    MS_SLAVE: int
    MS_SHARED: int
    MS_RELATIME: int
    MS_STRICTATIME: int
    MNT_DETACH: int
    UMOUNT_NOFOLLOW: int
    CLONE_NEWNS: int
    CLONE_FS: int
    RESOLVE_IN_ROOT: int
    RESOLVE_NO_MAGICLINKS: int
    __WALL: int
    LOOP_CTL_GET_FREE: int
    LOOP_CONFIGURE: int
    LO_FLAGS_READ_ONLY: int
    LO_FLAGS_AUTOCLEAR: int
    TIOCGPTN: int
    IN_CLOEXEC: int
    IN_NONBLOCK: int
    IN_MODIFY: int
    IN_IGNORED: int
    IN_Q_OVERFLOW: int

    def ds_clone_tree(self, path: bytes, recursive: bool) -> int: ...
    def ds_map_tree(self, tree: int, user_namespace: int, read_only: bool) -> int: ...
    def ds_attach_tree(self, tree: int, path: bytes) -> int: ...
    def ds_be_in_user_namespace(self) -> int: ...
    def ds_make_core_cookie(self) -> int: ...
    def ds_openat2(self, directory: int, path: bytes, flags: int, resolve: int) -> int: ...
    def mount(self, source: bytes, target: bytes, type: bytes, flags: int, data: bytes) -> int: ...
    def umount2(self, target: bytes, flags: int) -> int: ...
    def unshare(self, flags: int) -> int: ...
    def setns(self, fd: int, nstype: int) -> int: ...
    def ds_send_fifo(
        self, channel: int, record: bytes, size: int, other: int, fifo: int, input: bool
    ) -> int: ...
    def inotify_init1(self, flags: int) -> int: ...
    def inotify_add_watch(self, fd: int, path: bytes, mask: int) -> int: ...
    def inotify_rm_watch(self, fd: int, watch: int) -> int: ...

ffi: _FFI
lib: _Lib
