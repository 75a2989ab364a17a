"""The layers' other layout: same results, only within the `with`, never with old weights."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny import oracle, output
from torch import nn

import space_core
from space_core import Settings
from space_core.bundled import default_checkpoint
from space_core.cache import BlockCache
from space_core.layout import Layout
from space_core.products import Products, Replaced, _operator

pytestmark = pytest.mark.skipif(_operator() is None, reason="this torch has no oneDNN product")


def layers(bias=True):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 96, bias=bias), nn.Linear(96, 32, bias=bias))


def always(products):
    for product in products._layers.values():
        product.least = 1
    return products


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 1, 64), (1, 7, 64), (3, 5, 64), (9, 64)])
def test_the_other_layout_gives_the_same_product(bias, shape):
    net, x = layers(bias), torch.randn(shape)
    products = always(Products(net))
    assert len(products) == 2
    with torch.inference_mode():
        plain = net(x)
        with products.on():
            packed = net(x)
    assert packed.shape == plain.shape
    torch.testing.assert_close(packed, plain, rtol=1e-5, atol=1e-5)


def test_the_layers_are_their_own_outside():
    net = layers()
    products = always(Products(net))
    with products.on():
        assert all("forward" in layer.__dict__ for layer in net)
    assert not any("forward" in layer.__dict__ for layer in net)
    with pytest.raises(RuntimeError), products.on():
        raise RuntimeError
    assert not any("forward" in layer.__dict__ for layer in net)


def test_a_wrapper_that_was_there_comes_back():
    layer = nn.Linear(4, 4)
    wrapper = layer.forward
    layer.__dict__["forward"] = wrapper
    with Replaced({layer: lambda x: x}):
        pass
    assert layer.__dict__["forward"] is wrapper


@pytest.mark.parametrize("way", ["in place", "loaded", "other storage", "other parameter"])
def test_new_weights_are_never_missed(way):
    net, x = layers(), torch.randn(1, 4, 64)
    products = always(Products(net))
    head = products.head(net[0])
    with torch.no_grad():
        if way == "in place":
            net[0].weight.mul_(2)
        elif way == "loaded":
            net.load_state_dict({name: value * 2 for name, value in net.state_dict().items()})
        elif way == "other storage":
            net[0].weight.data = net[0].weight.data * 2
        else:
            net[0].weight = nn.Parameter(net[0].weight * 2)
        wanted, wanted_first = net(x), net[0](x)
        products.refresh()
        with products.on():
            torch.testing.assert_close(net(x), wanted)
        torch.testing.assert_close(head(x), wanted_first)


def test_new_weights_are_seen_by_the_next_text():
    """Whoever changes weights between two texts need not say so."""
    model = space_core.load(default_checkpoint())
    settings = Settings(k=2, max_new_tokens=8, plan="grid")
    for decode in (space_core.vanilla, space_core.space):
        before = output(decode(model, [5, 6, 7], settings))
        with torch.no_grad():
            for parameter in model.lm.model.layers[-1].parameters():
                parameter.mul_(-3)
        assert output(decode(model, [5, 6, 7], settings)) == oracle(model.lm, [5, 6, 7], 8) != before
        model = space_core.load(default_checkpoint())


def test_other_dtypes_devices_and_layers_stay_as_they_are():
    assert not len(Products(layers().double()))
    assert not len(Products(layers().to("meta")))
    net = layers()
    net[0].__dict__["forward"] = net[0].forward  # somebody hung something onto it
    assert len(Products(net)) == 1


def test_training_goes_through_torchs_own_product():
    net, x = layers(), torch.randn(1, 4, 64)
    with always(Products(net)).on():
        net(x).sum().backward()
    assert net[0].weight.grad is not None


def test_real_rows_are_bit_equal_with_and_without_the_adapter():
    model = space_core.load(default_checkpoint())
    if model.masks.adapter is None:
        pytest.skip("the bundled checkpoint has no adapter")
    bare = copy.copy(model)
    bare.masks = copy.copy(model.masks)
    bare.masks.adapter = None
    layout = Layout.steady((3, 2, 4))
    logits = []
    for one in (model, bare):
        cache = BlockCache()
        one.call(Layout.plain(20), list(range(20)), cache)
        logits.append(one.call(layout, [5, 6, 7], cache).real)
    assert torch.equal(*logits)


def test_products_are_measured_once_for_each_number(as_before, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    model = space_core.load(default_checkpoint())
    products = model.products
    if not products:
        pytest.skip("this torch has no oneDNN products")
    torch.set_num_threads(2)
    products.measure()
    two = [product.least for product in products._layers.values()]
    torch.set_num_threads(1)
    products.measure()
    for product in products._layers.values():
        product.least = -1
    torch.set_num_threads(2)
    products.measure()
    assert [product.least for product in products._layers.values()] == two
