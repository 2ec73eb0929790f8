"""State dicts as CORE-ReID's own code saves them, by renaming ours back."""

CHILDREN = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}


def released(model):
    """Stage 2."""
    state = {}
    heads = {
        "bn_global.": "BN_g.",
        "local_top.bn.": "BN_u.",
        "local_bottom.bn.": "BN_l.",
        "local_top.fc.": "adativeFC_upper.",
        "local_bottom.fc.": "adativeFC_low.",
        "classifier.": "classifier.",
    }
    fusions = {"ecab_top.mlp": "model.ca_upper.se", "ecab_bottom.mlp": "model.ca_low.se"}
    fusions |= {"bn_global": "fuse_net.bn_1", "bn_top": "fuse_net.bn_2", "bn_bottom": "fuse_net.bn_3"}
    for ours, theirs in (("student", "model"), ("teacher", "model_ema")):
        for key, value in getattr(model, ours).state_dict().items():
            if key.startswith("backbone."):
                _, child, rest = key.split(".", 2)
                state[f"{theirs}.base.{CHILDREN[child]}.{rest}"] = value
            else:
                head = next(head for head in heads if key.startswith(head))
                state[f"{theirs}.{heads[head]}{key.removeprefix(head)}"] = value
    for key, value in model.fusion.state_dict().items():
        head = next(head for head in fusions if key.startswith(head))
        state[fusions[head] + key.removeprefix(head)] = value[:, :, None, None] if "mlp" in key else value
    return state


def released_source(model):
    """Stage 1."""
    state = {f"feat_bn.{key}": value for key, value in model.bn.state_dict().items()}
    for key, value in model.backbone.state_dict().items():
        child, rest = key.split(".", 1)
        state[f"module.base.{CHILDREN[child]}.{rest}"] = value
    return {**state, "module.classifier.weight": model.classifier.weight.detach()}
