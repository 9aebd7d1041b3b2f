// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//
// Run on demand by BPF_PROG_TEST_RUN, attached to nothing: takes out of `pairs` and `live` what nobody will
// (dataplane/garbage.py). In the kernel, as others count in `live` at the same time.

#include "common.h"

// args: the two numbers of a handshake, and the id of the pair that is expected there. Gives 1 if it is gone
// by our doing.
int merlab_forget(struct bpf_raw_tracepoint_args *ctx) {
    struct handshake handshake = {.from_dialling = ctx->args[0], .from_accepting = ctx->args[1]};
    struct pair *pair = merlab_pairs.lookup(&handshake);
    u64 netns;

    if (!pair || pair->id != ctx->args[2])
        return 0;
    netns = pair->netns[0];
    if (merlab_pairs.delete(&handshake))
        return 0;
    live(netns, -1);
    return 1;
}

// args: the cookie of a network namespace (0: of none, for what is counted in all), and by how much `live` is
// too high there.
int merlab_release(struct bpf_raw_tracepoint_args *ctx) {
    u64 netns = ctx->args[0], by = ctx->args[1];
    u64 *count = merlab_live.lookup(&netns);

    if (count)
        __sync_fetch_and_add(count, -by);
    return 1;
}
