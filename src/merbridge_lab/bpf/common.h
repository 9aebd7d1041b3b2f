// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//
// The maps, and what more than one program needs.

#include "abi.h"

// Where kallsyms hides addresses (kernel.kptr_restrict=2, no CAP_SYSLOG), BCC takes this helper for missing
// and defines it as the old bpf_probe_read(), which the kernel refuses to these programs.
#undef bpf_probe_read_kernel
// Reads from anywhere in the kernel; not 0 if there is nothing.
#define PEEK(to, address) bpf_probe_read_kernel(&(to), sizeof(to), (void *)(address))

#define INLINE static inline __attribute__((always_inline))
// Keeps clang from merging two 4-byte accesses to a context into one of 8 bytes, which the verifier refuses.
#define BARRIER asm volatile("" ::: "memory")

#define AF_INET         2
#define AF_INET6        10
#define IPPROTO_TCP     6
#define TCP_ESTABLISHED 1
#define TCP_CLOSE       7
#define TCP_CLOSE_WAIT  8
#define MAPPED          bpf_htonl(0xffff) // third word of ::ffff:a.b.c.d
#define LOOPBACK4       bpf_htonl(0x7f000001)
#define INBOUND4        bpf_htonl(0x7f000006) // the source that a sidecar dials its own application from

// Header-free as we compile, these few UAPI structures are ours to spell out.
struct sockaddr4 {
    u16 family;
    u16 port;
    u32 ip4;
    u64 zero;
};

struct sockaddr6 {
    u16 family;
    u16 port;
    u32 flowinfo;
    u32 ip6[4];
    u32 scope;
};

BPF_ARRAY(merlab_config, struct config, 1);
BPF_ARRAY(merlab_kernel, struct kernel, 1);
BPF_ARRAY(merlab_stamp, struct stamp, 1);
BPF_F_TABLE("hash", u64, struct pod, merlab_pods, MAX_PODS, BPF_F_NO_PREALLOC);
BPF_F_TABLE("hash", u32, struct place, merlab_pod_ips, MAX_PODS, BPF_F_NO_PREALLOC);
BPF_F_TABLE("hash", struct port, u32, merlab_ports, MAX_PORTS, BPF_F_NO_PREALLOC);
BPF_F_TABLE("lpm_trie", struct range, u32, merlab_ranges, MAX_RANGES, BPF_F_NO_PREALLOC);
BPF_F_TABLE("percpu_hash", u64, struct counters, merlab_counters, MAX_PODS, BPF_F_NO_PREALLOC);
BPF_F_TABLE("hash", u64, u64, merlab_live, MAX_PODS, BPF_F_NO_PREALLOC);
BPF_F_TABLE("hash", struct handshake, struct pair, merlab_pairs, MAX_PAIRS, BPF_F_NO_PREALLOC);
BPF_SK_STORAGE(merlab_flows, struct flow);
BPF_ARRAY(merlab_readers, struct readers, 1);
BPF_ARRAY(merlab_lost, u64, READERS);
// What the rings of readers look like: the verifier wants one. Theirs are of any size.
BPF_RINGBUF_OUTPUT(merlab_ring, 16);
BPF_ARRAY_OF_MAPS(merlab_rings, "merlab_ring", READERS);

// BCC's own BPF_SOCKHASH has no lookup and 4-byte values; with 8 bytes user space reads back socket cookies.
#define SOCKHASH(_name, _key, _max)                                                                          \
    struct _name##_table_t {                                                                                 \
        _key key;                                                                                            \
        u64 leaf;                                                                                            \
        u64 *(*lookup)(_key *);                                                                              \
        int (*delete)(_key *);                                                                               \
        int (*sock_hash_update)(void *, void *, u64);                                                        \
        int (*msg_redirect_hash)(void *, void *, u64);                                                       \
        u32 max_entries;                                                                                     \
    };                                                                                                       \
    __attribute__((section("maps/sockhash"))) struct _name##_table_t _name = {.max_entries = (_max)};        \
    BPF_ANNOTATE_KV_PAIR(_name, _key, u64)

SOCKHASH(merlab_listeners, struct listener, MAX_LISTENERS);
SOCKHASH(merlab_peers, struct end, MAX_SOCKETS);

INLINE struct config *configuration(void) {
    u32 zero = 0;
    return merlab_config.lookup(&zero);
}

INLINE struct kernel *this_kernel(void) {
    u32 zero = 0;
    return merlab_kernel.lookup(&zero);
}

// Are new connections ours to bring anywhere?
INLINE int intercepting(void) {
    struct config *config = configuration();
    return config && config->intercept;
}

INLINE void add(struct counters *counters, u32 counter, u64 by) {
    u64 index = counter;
    // In assembly, as clang removes the bound where it can prove it and the verifier cannot.
    asm volatile("%0 &= 63" : "+r"(index));
    // Atomic, although per CPU: programs in process context can be preempted by one on the same CPU.
    __sync_fetch_and_add(&counters->value[index], by);
}

INLINE void count(u64 netns, u32 counter, u64 by) {
    struct counters *counters = merlab_counters.lookup(&netns);

    if (counters)
        add(counters, counter, by);
}

// One connection of a pod more, or less.
INLINE void live(u64 netns, s64 by) {
    u64 everyone = 0;
    u64 *live = merlab_live.lookup(&netns);
    u64 *all = merlab_live.lookup(&everyone);

    if (live)
        __sync_fetch_and_add(live, by);
    if (all)
        __sync_fetch_and_add(all, by);
}

// By user or by group, as Istio's rules tell.
INLINE int is_sidecar(struct pod *pod) {
    u64 who = bpf_get_current_uid_gid();
    return (u32)who == pod->uid || who >> 32 == pod->gid;
}

INLINE int is_loopback(u32 ip4) {
    return (bpf_ntohl(ip4) >> 24) == 127;
}

// The lists of a pod that a port is in.
INLINE u32 lists_of_port(u64 netns, u32 port) {
    struct port key = {.netns = netns, .port = port};
    u32 *lists = merlab_ports.lookup(&key);

    return lists ? *lists : 0;
}

// Whether a connection to a pod is its sidecar's, by its port: as chain ISTIO_INBOUND decides, in its order.
// `flags` are the pod's.
INLINE int is_sidecars_port(u32 flags, u64 netns, u32 port) {
    u32 lists = 0;

    if (port == PORT_HBONE)
        return 0;
    if (flags & POD_INBOUND_LISTS)
        lists = lists_of_port(netns, port);
    if (!(flags & POD_ALL_INBOUND))
        return lists & INCLUDED_INBOUND ? 1 : 0;
    return port != PORT_AGENT && port != PORT_HEALTH && port != PORT_STATS && !(lists & EXCLUDED_INBOUND);
}

// Whether sk_lookup gives a connection to the inbound listener, if it is to the address of a pod. By
// addresses, not by ingress_ifindex, which is not lo for what a pod sends to its own address. What is for the
// inbound port itself comes there without help. The second half of the answer is is_sidecars_port().
INLINE int may_be_steered(u32 local_ip4, u32 remote_ip4, u32 port) {
    return !is_loopback(remote_ip4) && remote_ip4 != local_ip4 && port != PORT_INBOUND;
}

#include "trace.h"
