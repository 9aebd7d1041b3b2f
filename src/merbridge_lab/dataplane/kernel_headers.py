"""The kernel headers that BCC looks for: nearly empty ones, because our programs need none of a real kernel's.

Real headers are often not installed, and those of another version would be worse than none.
"""

from __future__ import annotations

import platform
import re
from typing import TYPE_CHECKING

from merbridge_lab.adapters.change import change

if TYPE_CHECKING:
    from pathlib import Path

_TYPES = """
typedef unsigned char u8; typedef unsigned short u16; typedef unsigned int u32; typedef unsigned long long u64;
typedef signed char s8; typedef short s16; typedef int s32; typedef long long s64;
typedef u8 __u8; typedef u16 __u16; typedef u32 __u32; typedef u64 __u64;
typedef s8 __s8; typedef s16 __s16; typedef s32 __s32; typedef s64 __s64;
typedef u16 __be16; typedef u32 __be32; typedef u64 __be64; typedef u16 __le16; typedef u32 __le32; typedef u64 __le64;
typedef u32 __wsum; typedef u16 __sum16; typedef u64 __aligned_u64 __attribute__((aligned(8)));
typedef unsigned long size_t; typedef unsigned long uintptr_t; typedef _Bool bool;
#define __bitwise
"""

_PAGE = "#define PAGE_SHIFT 12\n#define PAGE_SIZE (1UL << PAGE_SHIFT)\n"


def release() -> tuple[int, int, int]:
    """Return the version of the running kernel."""
    parts = [int(part) for part in re.findall(r"\d+", platform.release())[:3]] + [0, 0, 0]
    return parts[0], parts[1], parts[2]


@change("write headers for a compiler")
def write(at: Path) -> None:
    """Write the tree that the environment variable BCC_KERNEL_SOURCE must name."""
    major, minor, patch = release()
    files = {
        "include/linux/kconfig.h": "#define CONFIG_BPF_SYSCALL 1\n",
        "include/linux/types.h": _TYPES,
        "include/linux/bpf_common.h": "",
        "include/linux/version.h": f"#define LINUX_VERSION_CODE {(major << 16) + (minor << 8) + min(patch, 255)}\n"
        "#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))\n",
        "include/linux/log2.h": "",
        "include/uapi/linux/bpf.h": "",
        "include/uapi/linux/if_packet.h": "",
        "include/uapi/linux/ptrace.h": "",
        "include/uapi/linux/if_ether.h": "",
        "arch/x86/include/asm/page.h": _PAGE,
        "arch/arm64/include/asm/page.h": _PAGE,
    }
    for name, text in files.items():
        path = at / name
        path.parent.mkdir(parents=True, exist_ok=True)
        guard = re.sub(r"\W", "_", name).upper()
        path.write_text(f"#ifndef {guard}\n#define {guard}\n{text}\n#endif\n")
