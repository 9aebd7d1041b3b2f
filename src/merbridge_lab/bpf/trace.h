// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//
// The trace: who reads it has a ring buffer of its own in `rings`, and nobody takes another's events. While
// nobody reads, an event costs one look at `readers`.

// BCC calls it as a method of a map that is declared; a ring is found when the program runs.
static long (*put)(void *ring, void *data, u64 size, u64 flags) = (void *)BPF_FUNC_ringbuf_output;

// Who is told now: a bit for each slot.
INLINE u32 audience(void) {
    u32 zero = 0;
    struct readers *readers = merlab_readers.lookup(&zero);
    struct config *config;

    if (!readers || !readers->open)
        return 0;
    config = configuration();
    return config && config->debug ? readers->open : readers->always;
}

INLINE void tell(u32 audience, struct event *event) {
    struct kernel *kernel = this_kernel();
    u64 task = bpf_get_current_task();
    u64 *lost;
    void *ring;
    u32 slot;

    event->nanoseconds = bpf_ktime_get_ns();
    if (kernel) {
        PEEK(event->pid, task + kernel->task_pid);
        PEEK(event->comm, task + kernel->task_comm);
    }
    for (slot = 0; slot < READERS; slot++) {
        u32 key = slot;

        if (!(audience >> slot & 1))
            continue;
        ring = merlab_rings.lookup((int *)&key);
        if (ring && !put(ring, event, sizeof(*event), 0))
            continue;
        lost = merlab_lost.lookup((int *)&key);
        if (lost)
            __sync_fetch_and_add(lost, 1);
    }
}

#define TELL(_kind, ...)                                                                                     \
    do {                                                                                                     \
        u32 to = audience();                                                                                 \
        if (to) {                                                                                            \
            struct event event = {.kind = _kind, __VA_ARGS__};                                               \
            tell(to, &event);                                                                                \
        }                                                                                                    \
    } while (0)
