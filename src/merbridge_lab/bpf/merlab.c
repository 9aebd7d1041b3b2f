// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//
// The dataplane in one translation unit, which is how BCC compiles.
//
// The license string is what the kernel understands: it knows "GPL" and "Dual MIT/GPL" but no "Dual
// Apache/GPL", and refuses helpers that these programs need to anything that is not GPL-compatible. The files
// themselves may be used under either license named in their first lines.
#define BPF_LICENSE GPL

#include "common.h"
#include "connect.c"
#include "sockops.c"
#include "sk_msg.c"
#include "sockopt.c"
#include "sk_lookup.c"
#include "unread.c"
#include "forget.c"
#include "learn.c"
