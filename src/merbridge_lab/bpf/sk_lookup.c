// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//
// sk_lookup, in the network namespace of each pod: connections from elsewhere (other nodes, the node itself,
// clients that are not in the mesh) go to the sidecar's inbound listener, whatever port they are for, unless
// Istio's annotations exclude it. With Istio's rules in place nat PREROUTING comes first and there is nothing
// left to do: the port is 15006 already.

#include "common.h"

int merlab_lookup(struct bpf_sk_lookup *ctx) {
    u32 local_ip4, remote_ip4, port;
    struct bpf_sock *listener;
    struct listener key = {};
    struct place *place;
    struct pod *pod;
    u64 netns;
    long failed;
    int i;

    if (ctx->family != AF_INET || ctx->protocol != IPPROTO_TCP)
        return SK_PASS;
    local_ip4 = ctx->local_ip4;
    BARRIER;
    remote_ip4 = ctx->remote_ip4;
    BARRIER;
    port = ctx->local_port;
    BARRIER;
    if (!intercepting() || !may_be_steered(local_ip4, remote_ip4, port))
        return SK_PASS;
    place = merlab_pod_ips.lookup(&local_ip4);
    if (!place)
        return SK_PASS;
    netns = place->netns;
    pod = merlab_pods.lookup(&netns);
    // The address could be another pod's by now: whoever has it in its entry is meant.
    if (!pod || pod->ip4 != local_ip4 || !is_sidecars_port(pod->flags, netns, port))
        return SK_PASS;
    key.netns = netns;
#pragma unroll
    for (i = 0; i < LISTENERS; i++) {
        key.slot = i;
        listener = (struct bpf_sock *)merlab_listeners.lookup(&key);
        if (!listener)
            continue;
        failed = bpf_sk_assign(ctx, listener, 0);
        bpf_sk_release(listener);
        if (failed)
            continue;
        count(netns, COUNTER_SK_LOOKUP_ASSIGNED, 1);
        TELL(EVENT_STEERED, .ip4 = local_ip4, .port = port, .from_ip4 = remote_ip4);
        return SK_PASS;
    }
    return SK_DROP; // a reset, as by the rules when no sidecar listens; never past it to the application
}
