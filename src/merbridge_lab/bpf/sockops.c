// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//
// sockops: brings the two ends of a connection together, and cleans up behind it.
//
// On the wire ACTIVE_ESTABLISHED (SYN-ACK received) comes before PASSIVE_ESTABLISHED (its ACK received), so
// the dialling side leaves an entry in `pairs` under the connection's first sequence numbers, and the
// accepting side completes it.

#include "common.h"
#include "queue.h"

#define SOL_SOCKET    1
#define SO_SNDBUF     7
#define SNDBUF        212992 // small enough that what is on TCP is soon read, and messages are redirected again
#define SNDBUF_LOCKED 1      // SOCK_SNDBUF_LOCK in sk_userlocks: the program asked for a size

// Whether this is an IPv4 connection; if so, fills `wire`.
INLINE int wire_of(struct bpf_sock_ops *ctx, struct wire *wire) {
    u32 family = ctx->family;
    u32 word;

    if (family == AF_INET6) {
        // An IPv6 socket of a pure IPv6 connection shows 127.0.0.6 in remote_ip4 (LOOPBACK4_IPV6): not ours.
        word = ctx->remote_ip6[0];
        BARRIER;
        word |= ctx->remote_ip6[1];
        BARRIER;
        word |= ctx->remote_ip6[2] ^ MAPPED;
        BARRIER;
        if (word)
            return 0;
    } else if (family != AF_INET) {
        return 0;
    }
    wire->src_ip4 = ctx->local_ip4;
    BARRIER;
    wire->dst_ip4 = ctx->remote_ip4;
    BARRIER;
    wire->src_port = ctx->local_port;
    BARRIER;
    wire->dst_port = bpf_ntohl(ctx->remote_port);
    BARRIER;
    return 1;
}

INLINE void watch_close(struct bpf_sock_ops *ctx) {
    bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
}

// Whether messages of this leg may be redirected, as sent by one side. The app is the one that dials on the
// outbound leg, and the one that accepts on the inbound leg.
INLINE int may_send(u32 leg, u32 side, u32 flags) {
    if (leg == LEG_MESH)
        return 1;
    return flags & ((leg == LEG_OUTBOUND) == (side == 0) ? POD_FROM_APP : POD_INTO_APP) ? 1 : 0;
}

// A socket enters `peers` if it may send or receive redirected messages: what is in no sockhash behaves in
// every respect as the kernel's own.
INLINE void enter(struct bpf_sock_ops *ctx, struct flow *flow, u32 flags, u64 netns) {
    struct kernel *kernel = this_kernel();
    struct end end = {.handshake = flow->handshake, .side = flow->side};
    u32 size = SNDBUF, may_receive = may_send(flow->leg, 1 - flow->side, flags);
    u8 locks = 0;
    int failed;

    flow->redirects = may_send(flow->leg, flow->side, flags);
    if (!kernel || (!flow->redirects && !may_receive))
        return;
    failed = merlab_peers.sock_hash_update(ctx, &end, BPF_NOEXIST);
    if (failed) {
        flow->redirects = 0;
        count(netns, COUNTER_MAP_FULL, 1);
        return;
    }
    flow->entered = 1 + flow->side;
    if (!flow->redirects)
        return;
    PEEK(flow->written, flow->sk + kernel->tcp_write_seq);
    // Bytes sent before the handshake was over went by TCP: look whether they have been read.
    if (ctx->data_segs_out != 0)
        flow->written--;
    PEEK(locks, flow->sk + kernel->sk_userlocks);
    if (!(locks >> kernel->sk_userlocks_shift & SNDBUF_LOCKED))
        bpf_setsockopt(ctx, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
}

// A pointer to a socket as a number. By way of memory, as the verifier allows no arithmetic on such a
// pointer.
INLINE u64 address_of(struct bpf_sock *sk, struct flow *flow) {
    flow->sk = (u64)sk;
    BARRIER;
    return flow->sk;
}

// Is it a socket of the pod's sidecar? A socket belongs to the user that opened it; accepted ones to that of
// the listener.
INLINE int is_sidecars(struct kernel *kernel, u64 sk, struct pod *pod) {
    u32 uid = ~pod->uid;

    PEEK(uid, sk + kernel->sk_uid);
    return uid == pod->uid;
}

// Registers an inbound listener that takes IPv4 connections, in the first slot that is free. With more
// listeners than slots the newest is known.
INLINE void listening(struct bpf_sock_ops *ctx, struct bpf_sock *sk, struct pod *pod, u64 netns) {
    struct kernel *kernel = this_kernel();
    struct listener key = {.netns = netns};
    struct flow *flow;
    u32 family = ctx->family;
    u8 only = 0;
    u64 address;
    int failed, i;

    BARRIER;
    if (ctx->local_port != PORT_INBOUND || !kernel)
        return;
    flow = merlab_flows.sk_storage_get(sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
    if (!flow) {
        count(netns, COUNTER_MAP_FULL, 1);
        return;
    }
    address = address_of(sk, flow);
    PEEK(only, address + kernel->sk_ipv6only);
    if (family != AF_INET && (family != AF_INET6 || only >> kernel->sk_ipv6only_shift & 1))
        return;
    if (!is_sidecars(kernel, address, pod))
        return;
#pragma unroll
    for (i = 0; i < LISTENERS; i++) {
        key.slot = i;
        failed = merlab_listeners.sock_hash_update(ctx, &key, i < LISTENERS - 1 ? BPF_NOEXIST : BPF_ANY);
        if (failed)
            continue;
        count(netns, COUNTER_LISTENERS_SEEN, 1);
        return;
    }
    count(netns, COUNTER_MAP_FULL, 1);
}

// About to send a SYN: from here on it is known when this attempt ends. Until now connect() may have failed
// without a trace.
INLINE void dialling(struct bpf_sock_ops *ctx, struct bpf_sock *sk, u64 netns) {
    struct flow *flow = merlab_flows.sk_storage_get(sk, 0, 0);
    struct end end = {};

    if (!flow)
        return;
    if (flow->entered) {
        // Disconnected by connect(AF_UNSPEC), and dialled again. What was redirected to its first connection
        // and not read would be read from this one.
        end.handshake = flow->handshake;
        end.side = flow->entered - 1;
        merlab_peers.delete(&end);
        flow->entered = 0;
    }
    if (flow->leg == LEG_NONE || flow->side != 0 || flow->reserved)
        return;
    flow->reserved = 1;
    live(netns, 1);
    watch_close(ctx);
}

INLINE void dialled(struct bpf_sock_ops *ctx, struct bpf_sock *sk, struct pod *pod, u64 netns) {
    struct flow *flow = merlab_flows.sk_storage_get(sk, 0, 0);
    struct handshake handshake = {};
    struct pair pair = {};

    if (!flow || flow->leg == LEG_NONE || flow->side != 0)
        return;
    if (!wire_of(ctx, &pair.wire))
        return;
    // What is acknowledged, as a SYN may bring data.
    handshake.from_dialling = ctx->snd_una;
    BARRIER;
    handshake.from_accepting = ctx->rcv_nxt;
    BARRIER;
    flow->handshake = handshake;
    pair.id = flow->pair;
    pair.sk[0] = address_of(sk, flow);
    pair.cookie[0] = bpf_get_socket_cookie(ctx);
    pair.netns[0] = netns;
    pair.orig_ip4 = flow->orig_ip4;
    pair.orig_port = flow->orig_port;
    pair.leg = flow->leg;
    pair.ends = 1;
    pair.refreshed = bpf_ktime_get_coarse_ns();
    if (merlab_pairs.insert(&handshake, &pair)) {
        count(netns, COUNTER_MAP_FULL, 1);
        return;
    }
    if (flow->reserved)
        flow->reserved = 0;
    else
        live(netns, 1);
    watch_close(ctx);
    // One that was disconnected and dialled again is left to TCP: few do, and their sockets have a past.
    if (flow->dialled == 1)
        enter(ctx, flow, pod->flags, netns);
    TELL(EVENT_ESTABLISHED, .pair = flow->pair, .ip4 = pair.wire.src_ip4, .port = pair.wire.src_port);
}

// Accepted from someone who left nothing for us. Brought here by sk_lookup, it will be asked where it was to
// go.
INLINE void arrived(struct bpf_sock_ops *ctx, struct bpf_sock *sk, struct pod *pod, u64 netns) {
    struct wire wire = {};
    struct flow *flow;

    if (!wire_of(ctx, &wire) || wire.src_ip4 != pod->ip4 ||
        !may_be_steered(wire.src_ip4, wire.dst_ip4, wire.src_port) ||
        !is_sidecars_port(pod->flags, netns, wire.src_port))
        return;
    flow = merlab_flows.sk_storage_get(sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
    if (flow)
        flow->steered = 1;
    else
        count(netns, COUNTER_MAP_FULL, 1);
}

// Whoever can choose sequence numbers could claim any destination. So the claim must fit the one who accepts:
// between an app and its sidecar both are in one pod, and what a sidecar was dialled for is its pod's.
INLINE int is_meant_for(struct kernel *kernel, struct pair *pair, u64 sk, struct pod *pod, u64 netns) {
    if (pair->leg != LEG_INBOUND && !is_sidecars(kernel, sk, pod))
        return 0;
    return pair->leg == LEG_MESH ? pair->orig_ip4 == pod->ip4 : pair->netns[0] == netns;
}

INLINE void accepted(struct bpf_sock_ops *ctx, struct bpf_sock *sk, struct pod *pod, u64 netns) {
    struct kernel *kernel = this_kernel();
    struct handshake handshake = {};
    struct pair *pair;
    struct flow *flow;
    u64 address;
    u32 ip4, port = ctx->local_port;

    BARRIER;
    ip4 = ctx->local_ip4;
    BARRIER;
    handshake.from_dialling = ctx->rcv_nxt;
    BARRIER;
    handshake.from_accepting = ctx->snd_una;
    BARRIER;
    pair = merlab_pairs.lookup(&handshake);
    if (!pair || pair->ends != 1 || pair->cookie[1] || !kernel) {
        arrived(ctx, sk, pod, netns);
        return;
    }
    flow = merlab_flows.sk_storage_get(sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
    if (!flow) {
        count(netns, COUNTER_MAP_FULL, 1);
        return;
    }
    address = address_of(sk, flow);
    if (!is_meant_for(kernel, pair, address, pod, netns)) {
        count(netns, COUNTER_REFUSED_HANDOVERS, 1);
        arrived(ctx, sk, pod, netns);
        return;
    }
    flow->pair = pair->id;
    flow->handshake = handshake;
    flow->side = 1;
    flow->leg = pair->leg;
    flow->orig_ip4 = pair->orig_ip4;
    flow->orig_port = pair->orig_port;
    flow->unread = 0;
    watch_close(ctx);
    enter(ctx, flow, pod->flags, netns);
    pair->netns[1] = netns;
    pair->cookie[1] = bpf_get_socket_cookie(ctx);
    __sync_fetch_and_add(&pair->ends, 1);
    // Last: from here on the dialling side redirects. Were this seen before the cookie, the two would not
    // fit, and the message go by TCP.
    BARRIER;
    pair->sk[1] = address;
    if (flow->leg >= LEG_OUTBOUND && flow->leg <= LEG_INBOUND)
        count(netns, COUNTER_ACCEPTED_OUTBOUND + flow->leg - LEG_OUTBOUND, 1);
    TELL(EVENT_ACCEPTED, .pair = flow->pair, .ip4 = ip4, .port = port);
}

// The socket itself leaves `peers` by the kernel's doing, when its last descriptor is closed.
INLINE void closed(struct bpf_sock_ops *ctx, struct bpf_sock *sk) {
    struct flow *flow = merlab_flows.sk_storage_get(sk, 0, 0);
    struct handshake handshake;
    struct pair *pair;
    u64 netns;

    if (!flow || flow->leg == LEG_NONE)
        return;
    flow->leg = LEG_NONE;
    flow->redirects = 0;
    if (flow->reserved) { // never established, or no entry could be made
        flow->reserved = 0;
        live(bpf_get_netns_cookie(ctx), -1);
        return;
    }
    handshake = flow->handshake;
    pair = merlab_pairs.lookup(&handshake);
    if (!pair || pair->id != flow->pair)
        return;
    // The other end may have bytes to read yet, so the entry stays for as long as one of them is there.
    pair->sk[flow->side & 1] = 0;
    netns = pair->netns[0];
    __sync_fetch_and_add(&pair->ends, -1);
    if (pair->ends == 0 && !merlab_pairs.delete(&handshake))
        live(netns, -1);
    TELL(EVENT_CLOSED, .pair = flow->pair, .side = flow->side);
}

int merlab_sockops(struct bpf_sock_ops *ctx) {
    u32 op = ctx->op;
    u64 netns;
    struct bpf_sock *sk;
    struct pod *pod;

    if (op != BPF_SOCK_OPS_TCP_LISTEN_CB && op != BPF_SOCK_OPS_TCP_CONNECT_CB &&
        op != BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB && op != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB &&
        op != BPF_SOCK_OPS_STATE_CB)
        return 1;
    netns = bpf_get_netns_cookie(ctx);
    sk = ctx->sk;
    if (!sk)
        return 1;
    if (op == BPF_SOCK_OPS_STATE_CB) {
        if (ctx->args[1] == TCP_CLOSE)
            closed(ctx, sk);
        return 1;
    }
    if (op == BPF_SOCK_OPS_TCP_CONNECT_CB) {
        dialling(ctx, sk, netns);
        return 1;
    }
    pod = merlab_pods.lookup(&netns);
    if (!pod)
        return 1;
    if (op == BPF_SOCK_OPS_TCP_LISTEN_CB)
        listening(ctx, sk, pod, netns);
    else if (op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB)
        dialled(ctx, sk, pod, netns);
    else
        accepted(ctx, sk, pod, netns);
    return 1;
}
