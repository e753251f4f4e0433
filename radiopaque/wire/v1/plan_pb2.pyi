from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Task(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TASK_UNSPECIFIED: _ClassVar[Task]
    TASK_RAW: _ClassVar[Task]
    TASK_MULTICLASS: _ClassVar[Task]
    TASK_MULTILABEL: _ClassVar[Task]
TASK_UNSPECIFIED: Task
TASK_RAW: Task
TASK_MULTICLASS: Task
TASK_MULTILABEL: Task

class Plan(_message.Message):
    __slots__ = ("format", "ring_bits", "name", "version", "steps", "preprocessing", "classes", "task", "intended_use")
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    RING_BITS_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    PREPROCESSING_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    INTENDED_USE_FIELD_NUMBER: _ClassVar[int]
    format: int
    ring_bits: int
    name: str
    version: str
    steps: _containers.RepeatedCompositeFieldContainer[Step]
    preprocessing: Preprocessing
    classes: _containers.RepeatedScalarFieldContainer[str]
    task: Task
    intended_use: IntendedUse
    def __init__(self, format: _Optional[int] = ..., ring_bits: _Optional[int] = ..., name: _Optional[str] = ..., version: _Optional[str] = ..., steps: _Optional[_Iterable[_Union[Step, _Mapping]]] = ..., preprocessing: _Optional[_Union[Preprocessing, _Mapping]] = ..., classes: _Optional[_Iterable[str]] = ..., task: _Optional[_Union[Task, str]] = ..., intended_use: _Optional[_Union[IntendedUse, _Mapping]] = ...) -> None: ...

class Preprocessing(_message.Message):
    __slots__ = ("channels", "height", "width", "resize", "interpolation", "mean", "std")
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    RESIZE_FIELD_NUMBER: _ClassVar[int]
    INTERPOLATION_FIELD_NUMBER: _ClassVar[int]
    MEAN_FIELD_NUMBER: _ClassVar[int]
    STD_FIELD_NUMBER: _ClassVar[int]
    channels: int
    height: int
    width: int
    resize: str
    interpolation: str
    mean: _containers.RepeatedScalarFieldContainer[float]
    std: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, channels: _Optional[int] = ..., height: _Optional[int] = ..., width: _Optional[int] = ..., resize: _Optional[str] = ..., interpolation: _Optional[str] = ..., mean: _Optional[_Iterable[float]] = ..., std: _Optional[_Iterable[float]] = ...) -> None: ...

class IntendedUse(_message.Message):
    __slots__ = ("modalities", "body_parts", "views", "age_years", "statement")
    MODALITIES_FIELD_NUMBER: _ClassVar[int]
    BODY_PARTS_FIELD_NUMBER: _ClassVar[int]
    VIEWS_FIELD_NUMBER: _ClassVar[int]
    AGE_YEARS_FIELD_NUMBER: _ClassVar[int]
    STATEMENT_FIELD_NUMBER: _ClassVar[int]
    modalities: _containers.RepeatedScalarFieldContainer[str]
    body_parts: _containers.RepeatedScalarFieldContainer[str]
    views: _containers.RepeatedScalarFieldContainer[str]
    age_years: _containers.RepeatedScalarFieldContainer[float]
    statement: str
    def __init__(self, modalities: _Optional[_Iterable[str]] = ..., body_parts: _Optional[_Iterable[str]] = ..., views: _Optional[_Iterable[str]] = ..., age_years: _Optional[_Iterable[float]] = ..., statement: _Optional[str] = ...) -> None: ...

class Step(_message.Message):
    __slots__ = ("inputs", "shape", "fraction_bits", "divisor", "limit", "input", "convolution", "matrix_product", "multiply", "add_constant", "combine", "reshape", "transpose", "slice", "pad", "concatenate", "expand", "window_sum", "remask", "truncate", "relu", "output")
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    FRACTION_BITS_FIELD_NUMBER: _ClassVar[int]
    DIVISOR_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    CONVOLUTION_FIELD_NUMBER: _ClassVar[int]
    MATRIX_PRODUCT_FIELD_NUMBER: _ClassVar[int]
    MULTIPLY_FIELD_NUMBER: _ClassVar[int]
    ADD_CONSTANT_FIELD_NUMBER: _ClassVar[int]
    COMBINE_FIELD_NUMBER: _ClassVar[int]
    RESHAPE_FIELD_NUMBER: _ClassVar[int]
    TRANSPOSE_FIELD_NUMBER: _ClassVar[int]
    SLICE_FIELD_NUMBER: _ClassVar[int]
    PAD_FIELD_NUMBER: _ClassVar[int]
    CONCATENATE_FIELD_NUMBER: _ClassVar[int]
    EXPAND_FIELD_NUMBER: _ClassVar[int]
    WINDOW_SUM_FIELD_NUMBER: _ClassVar[int]
    REMASK_FIELD_NUMBER: _ClassVar[int]
    TRUNCATE_FIELD_NUMBER: _ClassVar[int]
    RELU_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    inputs: _containers.RepeatedScalarFieldContainer[int]
    shape: _containers.RepeatedScalarFieldContainer[int]
    fraction_bits: int
    divisor: int
    limit: int
    input: Input
    convolution: Convolution
    matrix_product: MatrixProduct
    multiply: Multiply
    add_constant: AddConstant
    combine: Combine
    reshape: Reshape
    transpose: Transpose
    slice: Slice
    pad: Pad
    concatenate: Concatenate
    expand: Expand
    window_sum: WindowSum
    remask: Remask
    truncate: Truncate
    relu: Relu
    output: Output
    def __init__(self, inputs: _Optional[_Iterable[int]] = ..., shape: _Optional[_Iterable[int]] = ..., fraction_bits: _Optional[int] = ..., divisor: _Optional[int] = ..., limit: _Optional[int] = ..., input: _Optional[_Union[Input, _Mapping]] = ..., convolution: _Optional[_Union[Convolution, _Mapping]] = ..., matrix_product: _Optional[_Union[MatrixProduct, _Mapping]] = ..., multiply: _Optional[_Union[Multiply, _Mapping]] = ..., add_constant: _Optional[_Union[AddConstant, _Mapping]] = ..., combine: _Optional[_Union[Combine, _Mapping]] = ..., reshape: _Optional[_Union[Reshape, _Mapping]] = ..., transpose: _Optional[_Union[Transpose, _Mapping]] = ..., slice: _Optional[_Union[Slice, _Mapping]] = ..., pad: _Optional[_Union[Pad, _Mapping]] = ..., concatenate: _Optional[_Union[Concatenate, _Mapping]] = ..., expand: _Optional[_Union[Expand, _Mapping]] = ..., window_sum: _Optional[_Union[WindowSum, _Mapping]] = ..., remask: _Optional[_Union[Remask, _Mapping]] = ..., truncate: _Optional[_Union[Truncate, _Mapping]] = ..., relu: _Optional[_Union[Relu, _Mapping]] = ..., output: _Optional[_Union[Output, _Mapping]] = ...) -> None: ...

class Input(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Convolution(_message.Message):
    __slots__ = ("out_channels", "kernel", "strides", "pads", "dilations", "groups")
    OUT_CHANNELS_FIELD_NUMBER: _ClassVar[int]
    KERNEL_FIELD_NUMBER: _ClassVar[int]
    STRIDES_FIELD_NUMBER: _ClassVar[int]
    PADS_FIELD_NUMBER: _ClassVar[int]
    DILATIONS_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    out_channels: int
    kernel: _containers.RepeatedScalarFieldContainer[int]
    strides: _containers.RepeatedScalarFieldContainer[int]
    pads: _containers.RepeatedScalarFieldContainer[int]
    dilations: _containers.RepeatedScalarFieldContainer[int]
    groups: int
    def __init__(self, out_channels: _Optional[int] = ..., kernel: _Optional[_Iterable[int]] = ..., strides: _Optional[_Iterable[int]] = ..., pads: _Optional[_Iterable[int]] = ..., dilations: _Optional[_Iterable[int]] = ..., groups: _Optional[int] = ...) -> None: ...

class MatrixProduct(_message.Message):
    __slots__ = ("columns",)
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    columns: int
    def __init__(self, columns: _Optional[int] = ...) -> None: ...

class Multiply(_message.Message):
    __slots__ = ("weight_shape",)
    WEIGHT_SHAPE_FIELD_NUMBER: _ClassVar[int]
    weight_shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, weight_shape: _Optional[_Iterable[int]] = ...) -> None: ...

class AddConstant(_message.Message):
    __slots__ = ("constant_shape",)
    CONSTANT_SHAPE_FIELD_NUMBER: _ClassVar[int]
    constant_shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, constant_shape: _Optional[_Iterable[int]] = ...) -> None: ...

class Combine(_message.Message):
    __slots__ = ("coefficients",)
    COEFFICIENTS_FIELD_NUMBER: _ClassVar[int]
    coefficients: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, coefficients: _Optional[_Iterable[int]] = ...) -> None: ...

class Reshape(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Transpose(_message.Message):
    __slots__ = ("permutation",)
    PERMUTATION_FIELD_NUMBER: _ClassVar[int]
    permutation: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, permutation: _Optional[_Iterable[int]] = ...) -> None: ...

class Slice(_message.Message):
    __slots__ = ("starts", "strides")
    STARTS_FIELD_NUMBER: _ClassVar[int]
    STRIDES_FIELD_NUMBER: _ClassVar[int]
    starts: _containers.RepeatedScalarFieldContainer[int]
    strides: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, starts: _Optional[_Iterable[int]] = ..., strides: _Optional[_Iterable[int]] = ...) -> None: ...

class Pad(_message.Message):
    __slots__ = ("before", "after", "value")
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    before: _containers.RepeatedScalarFieldContainer[int]
    after: _containers.RepeatedScalarFieldContainer[int]
    value: int
    def __init__(self, before: _Optional[_Iterable[int]] = ..., after: _Optional[_Iterable[int]] = ..., value: _Optional[int] = ...) -> None: ...

class Concatenate(_message.Message):
    __slots__ = ("axis",)
    AXIS_FIELD_NUMBER: _ClassVar[int]
    axis: int
    def __init__(self, axis: _Optional[int] = ...) -> None: ...

class Expand(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WindowSum(_message.Message):
    __slots__ = ("kernel", "strides", "pads", "dilations")
    KERNEL_FIELD_NUMBER: _ClassVar[int]
    STRIDES_FIELD_NUMBER: _ClassVar[int]
    PADS_FIELD_NUMBER: _ClassVar[int]
    DILATIONS_FIELD_NUMBER: _ClassVar[int]
    kernel: _containers.RepeatedScalarFieldContainer[int]
    strides: _containers.RepeatedScalarFieldContainer[int]
    pads: _containers.RepeatedScalarFieldContainer[int]
    dilations: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, kernel: _Optional[_Iterable[int]] = ..., strides: _Optional[_Iterable[int]] = ..., pads: _Optional[_Iterable[int]] = ..., dilations: _Optional[_Iterable[int]] = ...) -> None: ...

class Remask(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Truncate(_message.Message):
    __slots__ = ("opened_bits", "shift")
    OPENED_BITS_FIELD_NUMBER: _ClassVar[int]
    SHIFT_FIELD_NUMBER: _ClassVar[int]
    opened_bits: int
    shift: int
    def __init__(self, opened_bits: _Optional[int] = ..., shift: _Optional[int] = ...) -> None: ...

class Relu(_message.Message):
    __slots__ = ("opened_bits", "shift")
    OPENED_BITS_FIELD_NUMBER: _ClassVar[int]
    SHIFT_FIELD_NUMBER: _ClassVar[int]
    opened_bits: int
    shift: int
    def __init__(self, opened_bits: _Optional[int] = ..., shift: _Optional[int] = ...) -> None: ...

class Output(_message.Message):
    __slots__ = ("bits", "position")
    BITS_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    bits: int
    position: int
    def __init__(self, bits: _Optional[int] = ..., position: _Optional[int] = ...) -> None: ...
