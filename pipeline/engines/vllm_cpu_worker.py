"""Imported in each worker process of a vLLM engine on CPUs.

A process must ask Linux once before it uses the tile registers of Intel AMX. vLLM's attention does
not ask, so a process whose first requests are so small that nothing else has asked dies of an
illegal instruction (seen with vLLM 0.32 and a prompt of one token).
"""

import torch

torch.cpu._init_amx()  # false where there is no AMX


class CpuWorker:
    """What ``worker_extension_cls`` names; it adds nothing."""
