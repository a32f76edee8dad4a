"""Weights spread over two processes, which each hold a half: FSDP2 and tensor parallelism, on the CPU."""

from __future__ import annotations

import copy
import os
import socket

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing

import layersurgery as ls
from layersurgery import testing
from layersurgery.errors import SurgeryError
from tests.elsewhere.tiny import SILENCE, WEIGHT_FORMS, apply, llama, logits, replaced, zeroed


@pytest.mark.slow
def test_two_processes():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    multiprocessing.spawn(_process, args=(port,), nprocs=2)


def _process(rank, port):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    try:
        for way in (gathered, gathered_at_once, split):
            _check(way(llama()), llama(), exact=way is not split)
    finally:
        dist.destroy_process_group()


def gathered(model):
    """FSDP2: each layer's weights are gathered for its pass, and dropped after it."""
    from torch.distributed.fsdp import fully_shard

    for layer in model.model.layers:
        fully_shard(layer)
    return fully_shard(model)


def gathered_at_once(model):
    """FSDP2, which leaves the weights whole after a pass: they look like any others then."""
    from torch.distributed.fsdp import fully_shard

    return fully_shard(model, reshard_after_forward=False)


def split(model):
    """Tensor parallelism: each process computes with its half."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    by_columns = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
    plan = {name: ColwiseParallel() for name in by_columns}
    plan |= {name: RowwiseParallel() for name in ("self_attn.o_proj", "mlp.down_proj")}
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.model.layers:
        parallelize_module(layer, mesh, copy.deepcopy(plan))
    return model


def _check(model, plain, exact):
    tolerance = 0 if exact else 1e-6  # halves are summed in another order
    assert all("sharded" in site.hazards for site in ls.select(model))
    before = logits(model)
    for role in ("attention", "mlp", "layer"):
        site, same = ls.select(model, role)[1], ls.select(plain, role)[1]
        assert site.parameters == same.parameters
        for do in (ls.Zero(), ls.Scale(0.5)):
            wanted = logits(replaced(plain, same, do))
            with testing.restored(model):
                ls.Surgery(at=site, do=do).attach(model).remove()
            logits(model)
            torch.testing.assert_close(apply(model, site, do), wanted, atol=tolerance, rtol=0)
            assert not torch.allclose(wanted, before, atol=1e-3)
            assert torch.equal(logits(model), before)
        for do in WEIGHT_FORMS:
            with (
                testing.restored(model),
                pytest.raises(SurgeryError, match=r"sharded over processes.*needs their values"),
            ):
                ls.Surgery(at=site, do=do).attach(model)
    site = ls.select(plain)[1]  # how it adds is seen on a copy without weights, which shards cannot be made into
    torch.testing.assert_close(apply(model, site, SILENCE), logits(zeroed(plain, site)), atol=tolerance, rtol=0)
    for (name, shard), parameter in zip(model.named_parameters(), plain.parameters(), strict=True):
        whole = shard.full_tensor() if hasattr(shard, "full_tensor") else shard
        assert torch.equal(whole, parameter), name
