"""An oracle for whose a token of the tower is: autograd says which rows' image positions its value reaches."""

import torch

from interp.models.running.slots import first


def feeding(vlm, batch, site):
    """Which rows' image positions in state 0 each token of the tower's first state, or of the projector, feeds: Bool
    `[row, token]`, by plain hooks and gradients."""
    held = watched(vlm, batch, site)
    generator = torch.Generator().manual_seed(0)
    fed = []
    for row in range(len(batch)):
        state = held["state"][row][batch.positions["image"][row]]
        total = (state * torch.randn(state.shape, generator=generator)).sum()
        if not len(state):
            fed.append(torch.zeros_like(fed[-1]))
            continue
        grads = torch.autograd.grad(total, held["tower"], retain_graph=True, allow_unused=True, materialize_grads=True)
        fed.append(torch.cat([(grad.flatten(0, -2) != 0).any(dim=-1) for grad in grads]))
    return torch.stack(fed)


def watched(vlm, batch, site):
    """What plain hooks see: under "tower" what enters the tower's first block or leaves the projector (a list of
    tensors), under "state" what enters layer 0."""
    held = {}

    def enters(name, as_list):
        def hook(_, args, kwargs):
            value = args[0] if args else next(iter(kwargs.values()))
            held[name] = [value] if as_list else value

        return hook

    def leaves(_, args, output):
        held["tower"] = output if isinstance(output, list) else [first(output)]

    structure, part = vlm.structure, vlm.model.get_submodule
    handles = [part(structure.layers)[0].register_forward_pre_hook(enters("state", False), with_kwargs=True)]
    if site == "vision":
        handles.append(part(structure.blocks)[0].register_forward_pre_hook(enters("tower", True), with_kwargs=True))
    else:
        handles.append(part(structure.projector).register_forward_hook(leaves))
    try:
        vlm.model(**vlm.inputs_of(batch))
    finally:
        for handle in handles:
            handle.remove()
    return held
