"""What cannot be compiled is refused with a typed error that names it and says what to do."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import DTypeLike
from onnx import TensorProto, helper

from radiopaque.errors import InvalidWeightsError, ModelFileError, UnsupportedModelError
from radiopaque.graph.compile import check_support, compile_model
from tests.unit.graph.support import make_model, node, rng

IMAGE = (1, 4, 6, 6)


def problems(model: onnx.ModelProto, batch: int | None = None) -> tuple[str, ...]:
    """All problems; compiling raises them, checking returns them."""
    with pytest.raises(UnsupportedModelError) as caught:
        compile_model(model, ring_bits=64, batch=batch)
    assert caught.value.problems == check_support(model, batch)
    for problem in caught.value.problems:
        assert "; remedy: " in problem
        assert problem in str(caught.value)
    return caught.value.problems


def test_every_problem_is_reported_at_once() -> None:
    """Behind an operator without support the walk goes on with the shape that it would have."""
    nodes = [
        node("Sigmoid", "x", "a"),
        node("MaxPool", "a", "b i", kernel_shape=[2, 2]),
        node("Cast", "i", "j", to=TensorProto.FLOAT),
        node("Mul", "b b", "c"),
        node("Add", "c j", "d"),
        node("Pad", "d pads", "e", mode="reflect"),
        node("Relu", "e", "f"),
        node("Erf", "f", "g"),
        node("Mul", "g two", "y"),
    ]
    constants = {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "two": np.float32(2)}
    found = problems(make_model(nodes, IMAGE, constants))
    assert [problem.split(")")[0] + ")" for problem in found] == [
        "node a_node (Sigmoid)",
        "node b_node (MaxPool)",
        "node c_node (Mul)",
        "node e_node (Pad)",
        "node g_node (Erf)",
    ]
    assert "the indices (i) are used" in found[1]
    assert "both factors depend on the image" in found[2]
    assert "mode 'reflect'" in found[3]
    assert "Relu and retrain" in found[4]


SINGLE: list[tuple[list[onnx.NodeProto], dict[str, Any], str]] = [
    ([node("Conv", "x x")], {}, "the weight 'x' depends on the image"),
    ([node("MatMul", "x x")], {}, "both factors depend on the image"),
    ([node("MatMul", "x w")], {"w": rng().normal(size=(4, 6, 6))}, "has batch dimensions"),
    ([node("Mul", "x x")], {}, "both factors depend on the image"),
    ([node("Div", "x x")], {}, "the divisor depends on the image"),
    ([node("Div", "c x")], {"c": np.float32(1)}, "the divisor depends on the image"),
    ([node("Div", "x c")], {"c": np.float32(0)}, "the divisor is zero"),
    ([node("Tanh", "x")], {}, "the operator is not supported"),
    ([node("Softmax", "x", "a"), node("Relu", "a")], {}, "taken off the output"),
    ([node("Softmax", "x", axis=3)], {}, "runs along axis 3"),
    ([node("ReduceSum", "x a")], {"a": np.array([1])}, ""),
    ([node("Slice", "x s e")], {"s": np.array([3]), "e": np.array([3])}, "no elements"),
    (
        [
            node(
                "AveragePool",
                "x",
                kernel_shape=[3, 3],
                strides=[2, 3],
                pads=[1, 1, 1, 1],
                ceil_mode=1,
                count_include_pad=1,
            )
        ],
        {},
        "",
    ),
    ([node("Gather", "x i", axis=2)], {"i": np.arange(6)[::-1].repeat(30)}, "out of order"),
    ([node("Concat", "x c", axis=0)], {"c": rng().normal(size=IMAGE)}, "is a constant where"),
    ([node("Clip", "x lo hi")], {"lo": np.float32(2), "hi": np.float32(1)}, "leave no range"),
    ([node("Dropout", "x _ t")], {"t": np.array(True)}, "model.eval()"),
    ([node("ArgMax", "x")], {}, "the data owner takes the argmax"),
    ([node("Cast", "x", to=TensorProto.INT64)], {}, "keep floating-point"),
    (
        [
            node("Relu", "x", "a"),
            node("Cast", "a", "b", to=TensorProto.INT32),
            node("Cast", "b", to=TensorProto.FLOAT),
        ],
        {},
        "keep floating-point",
    ),
]


@pytest.mark.parametrize(("nodes", "constants", "text"), [s for s in SINGLE if s[2]])
def test_one_reason(nodes: list[onnx.NodeProto], constants: dict[str, Any], text: str) -> None:
    (problem,) = problems(make_model(nodes, IMAGE, constants))
    assert text in problem


@pytest.mark.parametrize("nodes", [s[0] for s in SINGLE if not s[2]])
def test_neighbours_of_a_refusal_compile(nodes: list[onnx.NodeProto]) -> None:
    model = make_model(nodes, IMAGE, {"a": np.array([1])})
    assert check_support(model) == ()


def test_the_last_window_may_not_lie_in_the_padding() -> None:
    window: dict[str, Any] = {"kernel_shape": [3, 3], "strides": [2, 3], "pads": [1, 1, 1, 1]}
    model = make_model([node("AveragePool", "x", ceil_mode=1, **window)], (1, 4, 9, 8))
    assert "runtimes disagree" in problems(model)[0]


@pytest.mark.parametrize(
    ("operator", "shape", "window", "says"),
    [
        (
            "AveragePool",
            (1, 1, 1, 1),
            {"kernel_shape": [1, 1 << 23], "pads": [0, 9, 0, 1 << 23]},
            "too large",
        ),
        ("AveragePool", (1, 1, 2048, 2049), {"kernel_shape": [1, 1]}, "too large"),
        ("MaxPool", (1, 1, 1, 1 << 23), {"kernel_shape": [1, 1]}, "too large"),
        ("MaxPool", (1, 1, 1, 1 << 15), {"kernel_shape": [1, 1 << 15]}, "takes a step for each"),
    ],
)
def test_pools_that_no_plan_holds(
    operator: str, shape: tuple[int, ...], window: dict[str, Any], says: str
) -> None:
    """Files of 150 bytes took gigabytes: tables of windows by elements, a step for each element."""
    (problem,) = problems(make_model([node(operator, "x", **window)], shape))
    assert says in problem


def test_windows_are_counted_without_a_table_of_their_elements() -> None:
    window: dict[str, Any] = {"kernel_shape": [1, 4000], "pads": [0, 3999, 0, 3999]}
    model = make_model([node("AveragePool", "x", **window)], (1, 1, 1, 1))
    check_support(model)
    tracemalloc.start()
    try:
        assert check_support(model) == ()
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_operators_come_before_ranges() -> None:
    """Nobody should calibrate a model that cannot be compiled."""
    with pytest.raises(UnsupportedModelError, match="Tanh"):
        compile_model(make_model([node("Tanh", "x")], IMAGE))


def test_dynamic_dimensions_but_the_batch() -> None:
    """Operators are checked all the same, as far as they do not need the shape."""
    model = make_model([node("Tanh", "x", "a"), node("Relu", "a")], ("n", 3, "height", 8))
    size, operator = problems(model)
    assert "dimension 2 is dynamic (height)" in size
    assert "(Tanh)" in operator


def test_a_dynamic_batch_takes_the_number_asked_for() -> None:
    model = make_model([node("Relu", "x")], ("n", 3))
    assert compile_model(model, ring_bits=64).plan.batch == 1
    assert compile_model(model, ring_bits=64, batch=5).plan.input_step.shape == (5, 3)


def test_a_fixed_batch_is_not_changed() -> None:
    model = make_model([node("Relu", "x")], (2, 3))
    assert compile_model(model, ring_bits=64).plan.batch == 2
    assert "fixed batch 2, 4 was asked for" in problems(model, batch=4)[0]


def test_more_inputs_and_outputs() -> None:
    model = make_model([node("Relu", "x", "y"), node("Neg", "x", "z")], (2, 3), outputs=("y", "z"))
    model.graph.input.append(helper.make_tensor_value_info("age", TensorProto.FLOAT, [2]))
    inputs, outputs = problems(model)
    assert "age" in inputs
    assert "y, z" in outputs


def test_an_integer_image() -> None:
    model = make_model([node("Relu", "x")], (2, 3), elem_type=TensorProto.INT32)
    assert "holds INT32" in problems(model)[0]


def test_subgraphs_functions_and_other_domains() -> None:
    branch = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["r"])],
        "branch",
        [],
        [helper.make_tensor_value_info("r", TensorProto.FLOAT, [2, 3])],
    )
    model = make_model([node("Relu", "x")], (2, 3), {"c": np.array(True)})
    choice = node("If", "c", "b", then_branch=branch, else_branch=branch)
    own = helper.make_node("Twice", ["b"], ["t"], name="t_node", domain="mine")
    other = helper.make_node("Gelu", ["t"], ["y"], name="y_node", domain="com.microsoft")
    del model.graph.node[:]
    model.graph.node.extend([choice, own, other])
    ids = [helper.make_opsetid("", 17)]
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    model.functions.append(helper.make_function("mine", "Twice", ["a"], ["b"], body, ids))
    model.opset_import.extend(
        [helper.make_opsetid("mine", 1), helper.make_opsetid("com.microsoft", 1)]
    )
    found = problems(model)
    assert "holds a subgraph" in found[0]
    assert "inline_local_functions" in found[1]
    assert "com.microsoft::Gelu is no standard operator" in found[2]


def test_what_the_output_does_not_need_is_not_looked_at() -> None:
    model = make_model([node("Relu", "x"), node("Tanh", "x", "z"), node("Erf", "z", "u")], (2, 3))
    assert check_support(model) == ()


@pytest.mark.parametrize("size", [1 << 16, 1 << 12])
def test_a_constant_that_would_fill_the_memory(size: int) -> None:
    nodes = [node("ConstantOfShape", "s", "c"), node("Add", "x c")]
    model = make_model(nodes, (1,), {"s": np.array([size, size])})
    assert f"of {size**2} elements, which is too much" in problems(model)[0]


def test_constants_that_would_fill_the_memory_together() -> None:
    """Each is small enough; each makes the next one larger."""
    nodes = [node("ConstantOfShape", "s", "c0")]
    nodes += [node("Concat", f"c{i} c{i}", f"c{i + 1}", axis=0) for i in range(30)]
    model = make_model([*nodes, node("Add", "x c30")], (1,), {"s": np.array([64])})
    assert "elements, which is too much" in problems(model)[0]


def test_more_axes_than_arrays_have() -> None:
    model = make_model([node("Relu", "x")], (1,) * 65)
    assert "has 65 axes, which is too large" in problems(model)[0]


def test_tensors_that_no_machine_could_hold() -> None:
    model = make_model([node("Shape", "x", "s"), node("Reshape", "x s")], (1, 1 << 40, 1 << 40))
    assert "input 'x': tensor 'x' has the shape" in problems(model)[0]
    model = make_model([node("Tile", "x t")], (1, 2), {"t": np.array([1 << 30, 1 << 30])})
    assert "(Tile): tensor 'y' has the shape" in problems(model)[0]


def test_a_constant_of_unknown_shape() -> None:
    """Its inputs do not fit, so nobody can say how large it would be."""
    nodes = [node("Expand", "one s", "c"), node("Add", "x c")]
    model = make_model(nodes, (1,), {"one": np.ones(3, np.float32), "s": np.ones((1, 1), np.int64)})
    assert problems(model)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("kind", [np.float32, np.float16, np.float64])
def test_weights_that_are_not_finite(value: float, kind: DTypeLike) -> None:
    weights = np.ones((3, 2), kind)
    weights[1, 1] = value
    model = make_model([node("MatMul", "x w")], (1, 3), {"w": weights.astype(np.float32)})
    if kind != np.float64:
        model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weights, "w"))
    with pytest.raises(InvalidWeightsError, match="'w' holds 1 values that are NaN or infinite"):
        compile_model(model, ring_bits=64)


def test_a_computed_constant_that_is_not_finite() -> None:
    nodes = [node("Log", "c", "l"), node("Mul", "x l")]
    model = make_model(nodes, (1, 3), {"c": np.array([1.0, -1.0, 2.0])})
    with np.errstate(invalid="ignore"), pytest.raises(InvalidWeightsError, match="'l' holds 1"):
        compile_model(model, ring_bits=64)


def test_an_infinite_factor() -> None:
    model = make_model([node("Mul", "x c")], (1, 3), {"c": np.array(np.inf)})
    with pytest.raises(InvalidWeightsError, match="infinite"):
        compile_model(model, ring_bits=64)


def test_an_output_without_the_image() -> None:
    model = make_model([node("Relu", "c", "y")], (1, 3), {"c": np.array([1.0])})
    with pytest.raises(ModelFileError, match="does not depend on the input"):
        compile_model(model, ring_bits=64)
