"""System calls that a process which only serves disks has no use for, by their numbers.

Source: the kernel's `arch/x86/entry/syscalls/syscall_64.tbl`, and `asm-generic/unistd.h`, which is
aarch64's.
"""

from __future__ import annotations

from typing import Final

_X86_64: Final = """
    execve 59 execveat 322 fork 57 vfork 58
    ptrace 101 process_vm_readv 310 process_vm_writev 311 kcmp 312
    tkill 200 rt_sigqueueinfo 129 rt_tgsigqueueinfo 297
    socket 41 socketpair 53 connect 42 bind 49 listen 50
    mount 165 umount2 166 pivot_root 155 chroot 161 swapon 167 swapoff 168
    unshare 272 setns 308 sethostname 170 setdomainname 171 reboot 169 acct 163 quotactl 179
    init_module 175 finit_module 313 delete_module 176 create_module 174
    kexec_load 246 kexec_file_load 320 bpf 321 perf_event_open 298
    add_key 248 request_key 249 keyctl 250 userfaultfd 323
    name_to_handle_at 303 open_by_handle_at 304 fanotify_init 300
    chmod 90 fchmodat 268 chown 92 lchown 94 fchownat 260
    setxattr 188 lsetxattr 189 removexattr 197 lremovexattr 198
    utime 132 utimes 235 futimesat 261 utimensat 280 mknod 133 mknodat 259
    setuid 105 setgid 106 setreuid 113 setregid 114 setresuid 117 setresgid 119 setfsuid 122
    setfsgid 123 setgroups 116 capset 126
    personality 135 ioperm 173 iopl 172 modify_ldt 154 syslog 103 vhangup 153
    settimeofday 164 clock_settime 227 clock_adjtime 305 adjtimex 159
    setpriority 141 ioprio_set 251 migrate_pages 256 move_pages 279
"""

_AARCH64: Final = """
    execve 221 execveat 281
    ptrace 117 process_vm_readv 270 process_vm_writev 271 kcmp 272
    tkill 130 rt_sigqueueinfo 138 rt_tgsigqueueinfo 240
    socket 198 socketpair 199 connect 203 bind 200 listen 201
    mount 40 umount2 39 pivot_root 41 chroot 51 swapon 224 swapoff 225
    unshare 97 setns 268 sethostname 161 setdomainname 162 reboot 142 acct 89 quotactl 60
    init_module 105 finit_module 273 delete_module 106
    kexec_load 104 kexec_file_load 294 bpf 280 perf_event_open 241
    add_key 217 request_key 218 keyctl 219 userfaultfd 282
    name_to_handle_at 264 open_by_handle_at 265 fanotify_init 262
    fchmodat 53 fchownat 54
    setxattr 5 lsetxattr 6 removexattr 14 lremovexattr 15 utimensat 88 mknodat 33
    setuid 146 setgid 144 setreuid 145 setregid 143 setresuid 147 setresgid 149 setfsuid 151
    setfsgid 152 setgroups 159 capset 91
    personality 92 syslog 116 vhangup 58
    settimeofday 170 clock_settime 112 clock_adjtime 266 adjtimex 171
    setpriority 140 ioprio_set 30 migrate_pages 238 move_pages 239
"""

_EVERYWHERE: Final = """
    pidfd_send_signal 424 io_uring_setup 425 io_uring_enter 426 io_uring_register 427
    open_tree 428 move_mount 429 fsopen 430 fsconfig 431 fsmount 432 fspick 433
    pidfd_open 434 pidfd_getfd 438 process_madvise 440 mount_setattr 442 quotactl_fd 443
    fchmodat2 452 setxattrat 463 removexattrat 466 open_tree_attr 467 file_setattr 469
"""


def _numbers(text: str) -> dict[str, int]:
    words = text.split()
    return {name: int(number) for name, number in zip(words[::2], words[1::2], strict=True)}


DENIED: Final = {
    "x86_64": _numbers(_X86_64 + _EVERYWHERE),
    "aarch64": _numbers(_AARCH64 + _EVERYWHERE),
}
"""Calls that fail, by machine (`os.uname().machine`): to start programs; to look into or end other
processes; sockets besides those that are there; mounts, modules, keys, clocks; and what Landlock
leaves alone, such as the permissions of files by their names."""

LOOKED_AT: Final = {
    "x86_64": _numbers("seccomp 317 clone 56 clone3 435 kill 62 tgkill 234 ioctl 16 prlimit64 302"),
    "aarch64": _numbers(
        "seccomp 277 clone 220 clone3 435 kill 129 tgkill 131 ioctl 29 prlimit64 261"
    ),
}
"""Calls whose arguments decide, and the one that installs the filter."""
