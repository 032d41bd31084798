"""Time limits that depend on each other, in seconds.

`tests/unit/test_time_limits.py` states which must be shorter than which, and why. A limit that
nothing else depends on stays in its module.
"""

# What an end looks like. A driver that gets SIGTERM asks the coordinator to stop. Each engine
# learns of it with its next report, cancels its requests, saves its traces and signs off. The
# driver waits for that, and leaves Ray.

# Between SIGTERM and SIGKILL, where Slurm and Kubernetes are not told otherwise.
GRACE_SECONDS = 30.0
# How long a driver that was told to end waits until all engines have saved their traces.
DRIVER_SAVE_SECONDS = 20.0
# How long an engine's actor waits until its requests are cancelled, and until a save that is under
# way has ended.
ENGINE_SAVE_SECONDS = 18.0
# How long an actor that ends its process waits for the engine's own processes to shut down.
ENGINE_CLOSE_SECONDS = 10.0
# How long a driver whose rows are all durable waits until the engines have shut down.
DRIVER_CLOSE_SECONDS = 30.0
# How long the report of a run is offered to `notify.url`: after a signal, and else.
NOTIFY_STOPPED_SECONDS = 4.0
NOTIFY_SECONDS = 60.0
# How long before a time limit (of the config, or a scheduler's) a run begins to end.
LIMIT_NOTICE_SECONDS = 60.0

# The coordinator.

# How often an engine reports; the answer tells it whether the run is to end.
REPORT_SECONDS = 0.5
# How long a call to the coordinator may take where the caller can go on without an answer.
CALL_SECONDS = 5.0
# An engine that has reported within this time is alive, and its checkpoints need not be read.
LIVING_SECONDS = 3.0
# An engine that has not reported for this long is gone, or its machine is.
SILENT_SECONDS = 10.0

# Engines that hang.

# How often the driver looks.
HUNG_LOOK_SECONDS = 10.0
# How long an engine that has rows may do nothing, while others generate tokens, until it is killed.
# Its first tokens may wait for long prompts, for compilation or for a grammar.
HUNG_SECONDS = 600.0
# The same if no engine generates: then it may be the storage, the network or the whole machine.
HUNG_ALONE_SECONDS = 1800.0

# Nodes that come and go.

# How often the driver looks which nodes are about to end. GCE's spot notice comes 30 s before.
NODES_LOOK_SECONDS = 2.0

# Servers in place of an engine (`engine.kind: endpoint`).

# How long a server may take to accept a connection.
SERVER_CONNECT_SECONDS = 10.0
# How long a server may send nothing of a request until the request goes elsewhere.
SERVER_SILENT_SECONDS = 240.0
# How long a server may refuse all requests (429, 503) until it counts as down, and how long all
# servers may be down until the engine is dead.
SERVERS_DOWN_SECONDS = 240.0

# Figures.

# How long the end of a run waits for the thread that follows its figures.
FOLLOWER_JOIN_SECONDS = 10.0
# How often a long run gets a line of figures, in its record and in a log.
LINE_SECONDS = 30.0
# The age at which the last figures say nothing about the present: the run has ended.
FRESH_SECONDS = 4 * LINE_SECONDS

# The lease on an output location.

# How often the holder renews its lease.
LEASE_RENEW_SECONDS = 10.0
# After how long without a change a lease is free for others, and its holder gives up.
LEASE_EXPIRE_SECONDS = 90.0
# How often a newcomer looks whether a lease has changed.
LEASE_LOOK_SECONDS = 1.0
