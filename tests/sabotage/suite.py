"""All sabotages: each module registers its own, in the order of docs/sabotage.md."""

import lies_brief  # noqa: F401
import lies_dataplane  # noqa: F401
import lies_fresh  # noqa: F401
import lies_limits  # noqa: F401
import lies_mesh  # noqa: F401
import lies_netkernel  # noqa: F401
import lies_netpath  # noqa: F401
import lies_outside  # noqa: F401
import lies_plane  # noqa: F401
import lies_pods  # noqa: F401
import lies_procs  # noqa: F401
import lies_programs  # noqa: F401
import lies_readings  # noqa: F401
import lies_rest  # noqa: F401
import lies_rules  # noqa: F401
import lies_rulesread  # noqa: F401
import lies_saves  # noqa: F401
import lies_steps  # noqa: F401
import lies_strangers  # noqa: F401
import lies_trust  # noqa: F401
import oddities  # noqa: F401
