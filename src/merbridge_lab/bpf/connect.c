// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//
// cgroup/connect4, connect6: where a connection really goes. What Istio's rules do to the first packet, done
// to the address before there is a packet. getpeername4, 6: the dialling process goes on seeing what it asked
// for.

#include "common.h"

// What to do with one connect().
struct dial {
    u32 leg;
    u32 ip4;
    u32 port;
    u32 bind; // the source must become the pod's own address
    u32 src_ip4;
    u32 src_port; // 0 unless the caller chose one
};

#define DIALLED_SHIFT 48 // no cookie is that large

// The lists of a pod that the ranges around an address are in.
INLINE u32 lists_of_address(u64 netns, u32 ip4) {
    struct range key = {.prefix = 96, .netns_low = netns, .netns_high = netns >> 32, .ip4 = ip4};
    u32 *lists = merlab_ranges.lookup(&key);

    return lists ? *lists : 0;
}

// Whether the sidecar gets what its app dials: as chain ISTIO_OUTPUT decides, in its order.
INLINE int is_wanted(struct pod *pod, u64 netns, u32 ip4, u32 port) {
    u32 flags = pod->flags, ports, ranges;

    if (!(flags & POD_OUTBOUND_LISTS))
        return 1;
    ports = lists_of_port(netns, port);
    if (ports & EXCLUDED_OUTBOUND)
        return 0;
    ranges = lists_of_address(netns, ip4);
    if (ranges & EXCLUDED_OUTBOUND)
        return 0;
    return flags & POD_ALL_RANGES || ports & INCLUDED_OUTBOUND || ranges & INCLUDED_OUTBOUND;
}

// Whether the sidecar gets what it dials at its own pod's address: only what its user dials, not its group.
INLINE int is_own_call(struct pod *pod, u64 netns, u32 port) {
    if (port == PORT_HBONE || (u32)bpf_get_current_uid_gid() != pod->uid)
        return 0;
    return !(pod->flags & POD_OUTBOUND_LISTS) || !(lists_of_port(netns, port) & EXCLUDED_OUTBOUND);
}

// Where the sidecar listens for its application. One source port may be used for several destinations at the
// same time, and must not be for one: so each destination has another address of the loopback, which are all
// the sidecar's. Otherwise a pod would run out of ports, of which it has some for each destination.
INLINE u32 door(struct dial *dial) {
    u32 hash = (dial->ip4 ^ dial->port << 7) * 2654435761u;

    return bpf_htonl(0x7f800000 | hash >> 9);
}

// Addresses of no pod and no service: multicast and broadcast. The rules refuse them, or TCP does.
INLINE int is_for_many(u32 ip4) {
    return bpf_ntohl(ip4) >> 28 == 14 || ip4 == 0xffffffff;
}

INLINE void decide(struct dial *dial, struct pod *pod, u64 netns) {
    u32 ip4 = dial->ip4, own_ip4 = pod->ip4;
    struct place *place;

    dial->leg = LEG_NONE;
    dial->bind = 0;
    // Who is not known for the sidecar could be it: intercepted, it would dial itself for ever.
    if (pod->uid == NOBODY)
        return;
    if (!is_sidecar(pod)) {
        if (is_loopback(ip4) || ip4 == 0 || ip4 == own_ip4 || is_for_many(ip4) ||
            !is_wanted(pod, netns, ip4, dial->port))
            return;
        dial->leg = LEG_OUTBOUND;
        dial->ip4 = door(dial);
        dial->port = PORT_OUTBOUND;
        dial->bind = 1;
        return;
    }
    if (ip4 == own_ip4) {
        if (dial->src_ip4 == INBOUND4) {
            dial->leg = LEG_INBOUND;
        } else if (is_own_call(pod, netns, dial->port)) {
            // A sidecar calling its own pod. To its listener, as sk_lookup leaves alone what a pod sends to
            // itself; at 127.0.0.1, which Istio's rules leave alone.
            dial->leg = LEG_MESH;
            dial->ip4 = LOOPBACK4;
            dial->port = PORT_INBOUND;
            dial->bind = 1;
        }
        return;
    }
    // The port stays: network policies and flow logs see the one that was dialled, and the server's rules, or
    // sk_lookup, bring it to the sidecar. The two ends find each other by sequence numbers.
    place = merlab_pod_ips.lookup(&ip4);
    if (place && is_sidecars_port(place->flags, place->netns, dial->port))
        dial->leg = LEG_MESH;
}

// Is there room for one more connection of this pod, and of all? If not, the rules decide, as without us:
// once dialled, an app's connection cannot do without its entry in `pairs`.
INLINE int has_room(u64 netns) {
    struct kernel *kernel = this_kernel();
    u64 everyone = 0;
    u64 *live = merlab_live.lookup(&netns);
    u64 *all = merlab_live.lookup(&everyone);

    return kernel && live && all && (s64)*live < kernel->quota && (s64)*all < MAX_PAIRS - SPARE;
}

// Decides, counts and remembers. Gives the leg.
INLINE u32 intercept(struct bpf_sock_addr *ctx, struct bpf_sock *sk, struct dial *dial, u32 *own_ip4) {
    u64 netns = bpf_get_netns_cookie(ctx);
    struct pod *pod = merlab_pods.lookup(&netns);
    struct flow *flow;
    u32 ip4 = dial->ip4, port = dial->port;
    u64 pair;

    if (!pod)
        return LEG_NONE;
    *own_ip4 = pod->ip4;
    decide(dial, pod, netns);
    if (dial->leg != LEG_NONE && (!intercepting() || !has_room(netns))) {
        count(netns, COUNTER_LEFT_TO_RULES, 1);
        dial->leg = LEG_NONE;
        dial->ip4 = ip4;
        dial->port = port;
    }
    if (dial->leg == LEG_NONE) {
        count(netns, COUNTER_UNTOUCHED_CONNECTS, 1);
        // The same socket may have been dialled before, and disconnected.
        flow = merlab_flows.sk_storage_get(sk, 0, 0);
        if (flow) {
            flow->leg = LEG_NONE;
            flow->redirects = 0;
            flow->steered = 0;
        }
        return LEG_NONE;
    }
    flow = merlab_flows.sk_storage_get(sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
    if (!flow) {
        count(netns, COUNTER_MAP_FULL, 1);
        return LEG_NONE;
    }
    // A socket that was disconnected and is dialled again is another connection.
    pair = bpf_get_socket_cookie(ctx) | (u64)flow->dialled << DIALLED_SHIFT;
    flow->dialled++;
    flow->pair = pair;
    flow->side = 0;
    flow->leg = dial->leg;
    flow->orig_ip4 = ip4;
    flow->orig_port = port;
    flow->redirects = 0;
    flow->unread = 0;
    flow->steered = 0;
    count(netns, COUNTER_OUTBOUND_CONNECTS + dial->leg - LEG_OUTBOUND, 1);
    TELL(EVENT_CONNECT, .pair = pair, .leg = dial->leg);
    TELL(EVENT_WANTED, .pair = pair, .ip4 = ip4, .port = port);
    return dial->leg;
}

int merlab_connect4(struct bpf_sock_addr *ctx) {
    struct bpf_sock *sk = ctx->sk;
    struct dial dial = {};
    struct sockaddr4 source = {.family = AF_INET};
    u32 own_ip4 = 0;

    if (!sk || ctx->protocol != IPPROTO_TCP)
        return 1;
    dial.src_ip4 = sk->src_ip4;
    BARRIER;
    dial.src_port = sk->src_port;
    BARRIER;
    dial.ip4 = ctx->user_ip4;
    BARRIER;
    dial.port = bpf_ntohs(ctx->user_port);
    if (intercept(ctx, sk, &dial, &own_ip4) == LEG_NONE)
        return 1;
    if (dial.bind && dial.src_ip4 == 0) {
        // Without this the source would be 127.0.0.1 and the sidecar could not tell who called. Fails on a
        // socket that has a port already.
        source.ip4 = own_ip4;
        bpf_bind(ctx, &source, sizeof(source));
    }
    ctx->user_ip4 = dial.ip4;
    BARRIER;
    ctx->user_port = bpf_htons(dial.port);
    return 1;
}

// Only ::ffff:a.b.c.d, which Java dials by default and which never reaches connect4.
int merlab_connect6(struct bpf_sock_addr *ctx) {
    struct bpf_sock *sk = ctx->sk;
    struct dial dial = {};
    struct sockaddr6 source = {.family = AF_INET6};
    u32 own_ip4 = 0;
    u32 word0, word1, word2;

    if (!sk || ctx->protocol != IPPROTO_TCP)
        return 1;
    dial.src_ip4 = sk->src_ip4;
    BARRIER;
    dial.src_port = sk->src_port;
    BARRIER;
    word0 = ctx->user_ip6[0];
    BARRIER;
    word1 = ctx->user_ip6[1];
    BARRIER;
    word2 = ctx->user_ip6[2];
    BARRIER;
    if (word0 || word1 || word2 != MAPPED)
        return 1;
    dial.ip4 = ctx->user_ip6[3];
    BARRIER;
    dial.port = bpf_ntohs(ctx->user_port);
    if (intercept(ctx, sk, &dial, &own_ip4) == LEG_NONE)
        return 1;
    if (dial.bind && dial.src_ip4 == 0) {
        source.ip6[2] = MAPPED;
        source.ip6[3] = own_ip4;
        bpf_bind(ctx, &source, sizeof(source));
    }
    ctx->user_ip6[3] = dial.ip4;
    BARRIER;
    ctx->user_port = bpf_htons(dial.port);
    return 1;
}

int merlab_getpeer4(struct bpf_sock_addr *ctx) {
    struct bpf_sock *sk = ctx->sk;
    struct flow *flow;

    if (!sk || ctx->protocol != IPPROTO_TCP)
        return 1;
    flow = merlab_flows.sk_storage_get(sk, 0, 0);
    if (flow && flow->leg != LEG_NONE && flow->side == 0) {
        ctx->user_ip4 = flow->orig_ip4;
        BARRIER;
        ctx->user_port = bpf_htons(flow->orig_port);
    }
    return 1;
}

int merlab_getpeer6(struct bpf_sock_addr *ctx) {
    struct bpf_sock *sk = ctx->sk;
    struct flow *flow;

    if (!sk || ctx->protocol != IPPROTO_TCP)
        return 1;
    flow = merlab_flows.sk_storage_get(sk, 0, 0);
    if (flow && flow->leg != LEG_NONE && flow->side == 0) {
        ctx->user_ip6[3] = flow->orig_ip4;
        BARRIER;
        ctx->user_port = bpf_htons(flow->orig_port);
    }
    return 1;
}
