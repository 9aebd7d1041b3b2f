// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//
// Looking into the receiver. The OFF_ values come from this kernel's BTF (dataplane/btf.py): without kernel
// headers, or with those of another version, the compiler's idea of these structures would be silently wrong.
//
// A pointer to a socket may outlive the socket; its memory is only ever reused for another TCP socket
// (SLAB_TYPESAFE_BY_RCU), so reading is harmless, and the cookie tells whether it is still the same one.

#define PEEK(to, address) bpf_probe_read_kernel(&(to), sizeof(to), (void *)(address))

INLINE int is_still(u64 sk, u64 cookie) {
    u64 now = 0;
    return sk && !PEEK(now, sk + OFF_SK_COOKIE) && now == cookie;
}

// The psock: what the kernel hangs on a socket that is in a sockhash. The low bits of sk_user_data are flags.
INLINE u64 psock_of(u64 sk) {
    u64 psock = 0;
    PEEK(psock, sk + OFF_SK_USER_DATA);
    return psock & ~7ULL;
}

// Are redirected bytes waiting to be read there?
INLINE int has_unread(u64 psock) {
    u64 first = 0, head = psock + OFF_PSOCK_INGRESS_MSG;
    PEEK(first, head);
    return first != head;
}
