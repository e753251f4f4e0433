from radiopaque.wire.v1 import plan_pb2 as _plan_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CryptenTuple(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CRYPTEN_TUPLE_UNSPECIFIED: _ClassVar[CryptenTuple]
    CRYPTEN_TUPLE_PRODUCT: _ClassVar[CryptenTuple]
    CRYPTEN_TUPLE_MATRIX_PRODUCT: _ClassVar[CryptenTuple]
    CRYPTEN_TUPLE_CONVOLUTION: _ClassVar[CryptenTuple]
    CRYPTEN_TUPLE_SQUARE: _ClassVar[CryptenTuple]
    CRYPTEN_TUPLE_CONJUNCTION: _ClassVar[CryptenTuple]
    CRYPTEN_TUPLE_BIT: _ClassVar[CryptenTuple]
CRYPTEN_TUPLE_UNSPECIFIED: CryptenTuple
CRYPTEN_TUPLE_PRODUCT: CryptenTuple
CRYPTEN_TUPLE_MATRIX_PRODUCT: CryptenTuple
CRYPTEN_TUPLE_CONVOLUTION: CryptenTuple
CRYPTEN_TUPLE_SQUARE: CryptenTuple
CRYPTEN_TUPLE_CONJUNCTION: CryptenTuple
CRYPTEN_TUPLE_BIT: CryptenTuple

class CryptenPlan(_message.Message):
    __slots__ = ("format", "name", "version", "operations", "requests", "preprocessing", "classes", "task", "intended_use", "gross_errors", "largest_output")
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    OPERATIONS_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    PREPROCESSING_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    INTENDED_USE_FIELD_NUMBER: _ClassVar[int]
    GROSS_ERRORS_FIELD_NUMBER: _ClassVar[int]
    LARGEST_OUTPUT_FIELD_NUMBER: _ClassVar[int]
    format: int
    name: str
    version: str
    operations: _containers.RepeatedCompositeFieldContainer[CryptenOperation]
    requests: _containers.RepeatedCompositeFieldContainer[CryptenRequest]
    preprocessing: _plan_pb2.Preprocessing
    classes: _containers.RepeatedScalarFieldContainer[str]
    task: _plan_pb2.Task
    intended_use: _plan_pb2.IntendedUse
    gross_errors: float
    largest_output: float
    def __init__(self, format: _Optional[int] = ..., name: _Optional[str] = ..., version: _Optional[str] = ..., operations: _Optional[_Iterable[_Union[CryptenOperation, _Mapping]]] = ..., requests: _Optional[_Iterable[_Union[CryptenRequest, _Mapping]]] = ..., preprocessing: _Optional[_Union[_plan_pb2.Preprocessing, _Mapping]] = ..., classes: _Optional[_Iterable[str]] = ..., task: _Optional[_Union[_plan_pb2.Task, str]] = ..., intended_use: _Optional[_Union[_plan_pb2.IntendedUse, _Mapping]] = ..., gross_errors: _Optional[float] = ..., largest_output: _Optional[float] = ...) -> None: ...

class CryptenOperation(_message.Message):
    __slots__ = ("name", "inputs", "shape", "integers", "reals")
    NAME_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    INTEGERS_FIELD_NUMBER: _ClassVar[int]
    REALS_FIELD_NUMBER: _ClassVar[int]
    name: str
    inputs: _containers.RepeatedScalarFieldContainer[int]
    shape: _containers.RepeatedScalarFieldContainer[int]
    integers: _containers.RepeatedScalarFieldContainer[int]
    reals: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, name: _Optional[str] = ..., inputs: _Optional[_Iterable[int]] = ..., shape: _Optional[_Iterable[int]] = ..., integers: _Optional[_Iterable[int]] = ..., reals: _Optional[_Iterable[float]] = ...) -> None: ...

class CryptenRequest(_message.Message):
    __slots__ = ("tuple", "left", "right", "integers")
    TUPLE_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    RIGHT_FIELD_NUMBER: _ClassVar[int]
    INTEGERS_FIELD_NUMBER: _ClassVar[int]
    tuple: CryptenTuple
    left: _containers.RepeatedScalarFieldContainer[int]
    right: _containers.RepeatedScalarFieldContainer[int]
    integers: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, tuple: _Optional[_Union[CryptenTuple, str]] = ..., left: _Optional[_Iterable[int]] = ..., right: _Optional[_Iterable[int]] = ..., integers: _Optional[_Iterable[int]] = ...) -> None: ...
