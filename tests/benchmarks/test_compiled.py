"""What is read from the text of a compiled program, and what a Pallas kernel is charged, against values by hand."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas.ops.tpu import flash_attention as flash

from benchmarks.compiled import account, charges, hlo, programs, tables
from benchmarks.compiled.targets import CHIPS
from benchmarks.report import PAGE

V5E = CHIPS["v5e"]

TEXT = """HloModule jit_f, is_scheduled=true, entry_computation_layout={(f32[8,100]{1,0:T(8,128)})->f32[8,100]{1,0:T(8,128)}}

FileNames
1 "f.py"

%fused_computation (param_0: bf16[10,100], param_1: bf16[100,200]) -> bf16[10,200] {
  %param_0 = bf16[10,100]{1,0:T(8,128)(2,1)} parameter(0)
  %param_1 = bf16[100,200]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  %convolution.1 = f32[10,200]{1,0:T(8,128)} convolution(%param_0, %param_1), dim_labels=bf_io->bf, metadata={op_name="jit(f)/backbone/layer_3/mlp/fc1/dot_general"}
  ROOT %convert.1 = bf16[10,200]{1,0:T(8,128)(2,1)} convert(%convolution.1)
}

%fused_computation.1 (param_0.1: f32[8,100]) -> f32[100,8] {
  %param_0.1 = f32[8,100]{1,0:T(8,128)} parameter(0)
  ROOT %transpose.1 = f32[100,8]{0,1:T(8,128)} transpose(%param_0.1), dimensions={1,0}
}

%body (loop: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %loop = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %counter = s32[]{:T(128)} get-tuple-element(%loop), index=0
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)} add(%counter, %one)
  %value = f32[8,128]{1,0:T(8,128)} get-tuple-element(%loop), index=1
  %sine.1 = f32[8,128]{1,0:T(8,128)} sine(%value), metadata={op_name="jit(f)/while/body/head/sin"}, backend_config={"window_config":{"estimated_cycles":"70"}}
  ROOT %tuple.1 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) tuple(%next, %sine.1)
}

%condition (loop.1: (s32[], f32[8,128])) -> pred[] {
  %loop.1 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %counter.1 = s32[]{:T(128)} get-tuple-element(%loop.1), index=0
  %limit = s32[]{:T(128)} constant(7)
  ROOT %less = pred[]{:T(512)} compare(%counter.1, %limit), direction=LT
}

ENTRY %main.9 (x: f32[8,100], w: bf16[100,200]) -> (f32[8,128], bf16[10,200], /*index=2*/f32[100,8]) {
  %x = f32[8,100]{1,0:T(8,128)} parameter(0), metadata={op_name="x"}
  %w = bf16[100,200]{1,0:T(8,128)(2,1)} parameter(1), metadata={op_name="params[\\'backbone\\'][\\'layer_3\\'][\\'mlp\\'][\\'fc1\\'][\\'kernel\\']"}
  %copy-start = (bf16[100,200]{1,0:T(8,128)(2,1)S(1)}, bf16[100,200]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%w)
  %slice-start = ((f32[8,100]{1,0:T(8,128)}), f32[2,100]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%x), slice={[0:2], [0:100]}
  %y = bf16[10,100]{1,0:T(8,128)(2,1)} custom-call(), custom_call_target="Unknown"
  %copy-done = bf16[100,200]{1,0:T(8,128)(2,1)S(1)} copy-done(%copy-start)
  %slice-done = f32[2,100]{1,0:T(8,128)S(1)} slice-done(%slice-start)
  %fusion.1 = bf16[10,200]{1,0:T(8,128)(2,1)S(1)} fusion(%y, %copy-done, /*index=2*/%y), kind=kOutput, calls=%fused_computation, metadata={op_name="jit(f)/backbone/layer_3/mlp/fc1/dot_general"}, backend_config={"window_config":{"estimated_cycles":"1000"}}
  %fusion.2 = f32[100,8]{0,1:T(8,128)} fusion(%x), kind=kLoop, calls=%fused_computation.1, metadata={op_name="jit(f)/neck/transpose"}, backend_config={"window_config":{"estimated_cycles":"300"}}
  %gather.1 = f32[8,128]{1,0:T(8,128)} gather(%fusion.2, %x), metadata={op_name="jit(f)/head/jit(_take)/gather"}
  %kernel.4 = f32[16,128]{1,0:T(8,128)} custom-call(%gather.1, %slice-done), custom_call_target="tpu_custom_call", metadata={op_name="jit(f)/backbone/layer_0/attention/pallas_call"}, backend_config={"custom_call_config":{"body":"TUz="}}
  %zero = s32[]{:T(128)} constant(0)
  %copy.3 = s32[]{:T(128)} copy(%zero)
  %tuple.2 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) tuple(%copy.3, %gather.1)
  %while.1 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) while(%tuple.2), condition=%condition, body=%body, metadata={op_name="jit(f)/while"}
  %result = f32[8,128]{1,0:T(8,128)} get-tuple-element(%while.1), index=1
  ROOT %tuple.3 = (f32[8,128]{1,0:T(8,128)}, bf16[10,200]{1,0:T(8,128)(2,1)S(1)}, /*index=2*/f32[100,8]{0,1:T(8,128)}) tuple(%result, %fusion.1, %fusion.2)
}
"""  # noqa: E501

CHARGE = charges.Charge(
    "kernel", charges.Work(2**20, 2**22, 2**13, 5), ((8, 128), (2, 100), (16, 128)), (8192, 1600, 8192), 4
)


@pytest.fixture(scope="module")
def kernels():
    found = account.account(hlo.parse(TEXT), V5E, [CHARGE])
    return {kernel.name: kernel for kernel in found.kernels}, found


@pytest.mark.parametrize(
    ("text", "size", "padded", "space"),
    [
        ("bf16[8,1370,384]{2,0,1:T(8,128)(2,1)S(1)}", 8 * 1370 * 384 * 2, 8 * 1370 * 384 * 2, 1),
        ("bf16[8,1370,384]{2,1,0:T(8,128)(2,1)}", 8 * 1370 * 384 * 2, 8 * 1376 * 384 * 2, 0),
        ("f32[518,8,518,32]{3,2,1,0:T(8,128)}", 518 * 8 * 518 * 32 * 4, 518 * 8 * 520 * 128 * 4, 0),
        ("f32[384]{0:T(512)}", 384 * 4, 512 * 4, 0),
        ("pred[5,3]", 15, 15, 0),
        ("f32[]{:T(128)}", 4, 512, 0),
        ("u4[3,128]{1,0:T(8,128)}", 192, 512, 0),
    ],
)
def test_bytes_of_shapes(text, size, padded, space):
    (shape,) = hlo.shapes(text)
    assert (shape.bytes, shape.padded_bytes, shape.space) == (size, padded, space)


def test_a_fusion_is_one_kernel_and_the_chip_s_memory_is_not_counted(kernels):
    fusion = kernels[0]["fusion.1"]
    # %y, which is two operands, is in device memory; the matrix and the result are on the chip.
    assert (fusion.bytes, fusion.padded_bytes) == (10 * 100 * 2, 16 * 128 * 2)
    assert (fusion.part, fusion.kind, fusion.cycles, fusion.charged) == ("MLP", "products", 1000, 0)
    assert fusion.op == "jit(f)/backbone/layer_N/mlp/fc1/dot_general"
    copy = kernels[0]["fusion.2"]
    assert (copy.part, copy.kind) == ("neck", "layout copies")
    assert (copy.bytes, copy.padded_bytes) == (2 * 8 * 100 * 4, 2 * 8 * 128 * 4)


def test_asynchronous_copies_count_once(kernels):
    assert not {"copy-done", "slice-done"} & set(kernels[0])
    whole, part = kernels[0]["copy-start"], kernels[0]["slice-start"]
    assert whole.bytes == 100 * 200 * 2
    assert part.bytes == 2 * 100 * 4, "a slice reads what it returns"
    assert {whole.kind, part.kind} == {"to and from the chip"}
    assert (whole.charged, whole.part) == (0, "MLP")


def test_a_loop_s_body_counts_as_often_as_it_runs(kernels):
    sine = kernels[0]["sine.1"]
    assert (sine.count, sine.cycles, sine.bytes, sine.part) == (7, 490, 7 * 2 * 8 * 128 * 4, "head")
    assert kernels[1].unknown_loops == []
    unknown = account.account(hlo.parse(TEXT.replace("constant(7)", "parameter(0)")), V5E, [CHARGE])
    assert unknown.unknown_loops == ["while.1"]
    known = TEXT.replace('metadata={op_name="jit(f)/while"}', 'backend_config={"known_trip_count":{"n":"3"}}')
    assert next(k.count for k in account.account(hlo.parse(known), V5E, [CHARGE]).kernels if k.name == "sine.1") == 3


def test_what_has_no_estimate_is_charged_its_bytes(kernels):
    gather = kernels[0]["gather.1"]
    moved = (8 * 128 + 8 * 128 + 8 * 128) * 4  # both operands have 100 numbers in rows of 128, or in 104 rows of 8
    assert (gather.kind, gather.cycles, gather.padded_bytes) == ("gathers", 0, moved)
    assert gather.charged == pytest.approx(moved / 0.819e12 * 1.5e9)


def test_a_pallas_call_is_charged_by_its_shapes(kernels):
    kernel = kernels[0]["kernel.4"]
    assert (kernel.part, kernel.kind, kernel.bytes) == ("attention", "custom calls", 0)
    assert kernel.charged_bytes == 2 * 8192, "the operand on the chip is not counted"
    assert kernel.charged == pytest.approx(2**22 / (197e12 / 2) * 1.5e9 + 2**13 / 1024)
    assert kernel.elementwise == 5
    assert kernels[1].uncharged == ["Unknown (y)"]
    without = account.account(hlo.parse(TEXT), V5E, [])
    assert "tpu_custom_call (kernel.4)" in without.uncharged


def test_the_sums_are_those_of_the_kernels(kernels):
    summary = kernels[1].summary(most=3)
    assert summary["total"]["cycles"] == 1000 + 300 + 490
    for table in ("parts", "kinds", "parts_and_kinds"):
        for figure in ("count", "cycles", "bytes", "charged_bytes"):
            assert sum(row[figure] for row in summary[table].values()) == summary["total"][figure]
    assert [row["name"] for row in summary["kernels"]] == ["fusion.1", "sine.1", "fusion.2"]


def test_a_program_that_is_not_compiled_is_refused():
    with pytest.raises(ValueError, match="not scheduled"):
        hlo.parse(TEXT.replace("is_scheduled=true", "is_scheduled=false"))


# --- Pallas kernels ------------------------------------------------------------------------------------------------


def charged(function, *shapes, chip=V5E):
    with charges.recorded(chip) as found:
        jax.eval_shape(function, *(jax.ShapeDtypeStruct(*shape) for shape in shapes))
    return found


def matmul(a, b, precision=None):
    def kernel(a_ref, b_ref, out_ref):
        @pl.when(pl.program_id(2) == 0)
        def _():
            out_ref[...] = jnp.zeros_like(out_ref)

        product = jax.lax.dot(a_ref[...], b_ref[...], precision=precision, preferred_element_type=jnp.float32)
        out_ref[...] += jnp.exp(product)

    return pl.pallas_call(
        kernel,
        grid=(2, 3, 4),
        in_specs=[
            pl.BlockSpec((200, 64), lambda i, j, k: (i, k)),
            pl.BlockSpec((64, 100), lambda i, j, k: (k, j)),
        ],
        out_specs=pl.BlockSpec((200, 100), lambda i, j, k: (i, j)),
        out_shape=jax.ShapeDtypeStruct((400, 300), jnp.float32),
        name="matmul",
    )(a, b)


def test_the_charge_of_a_matrix_product():
    (charge,) = charged(matmul, ((400, 256), jnp.bfloat16), ((256, 300), jnp.bfloat16))
    assert (charge.name, charge.steps) == ("matmul", 24)
    assert charge.work.flop == 24 * 2 * 200 * 64 * 100
    assert charge.work.padded_flop == 24 * 2 * 256 * 128 * 128
    assert charge.work.transcendental == 24 * 200 * 128
    # Both operands change in every step; the result is written when the grid leaves its block.
    assert charge.moved == (24 * 200 * 64 * 2, 24 * 64 * 100 * 2, 6 * 200 * 100 * 4)
    computing = charge.work.padded_flop / (197e12 / 2) * 1.5e9 + 24 * 200 * 128 / 1024
    assert charge.cycles(V5E, 0) == pytest.approx(computing)
    assert charge.cycles(V5E, 1e9) == pytest.approx(1e9 / 0.819e12 * 1.5e9)
    (wider,) = charged(matmul, ((400, 256), jnp.bfloat16), ((256, 300), jnp.bfloat16), chip=CHIPS["v6e"])
    assert wider.work.padded_flop == 24 * 2 * 256 * 256 * 256


def test_float32_products_take_several_passes():
    exact, high, fast = (
        charged(lambda a, b, p=p: matmul(a, b, p), ((400, 256), jnp.float32), ((256, 300), jnp.float32))[0].work
        for p in (jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGH, jax.lax.Precision.DEFAULT)
    )
    assert exact.padded_flop == 6 * fast.padded_flop == 2 * high.padded_flop
    assert exact.flop == fast.flop


def test_the_charge_of_jax_s_flash_attention():
    sizes = flash.BlockSizes(block_q=128, block_k_major=256, block_k=256, block_b=1)
    (charge,) = charged(
        lambda q, k, v: flash.flash_attention(q, k, v, block_sizes=sizes), *[((2, 3, 512, 64), jnp.bfloat16)] * 3
    )
    steps = 2 * 3 * 4 * 2
    assert charge.steps == steps
    assert charge.work.flop == steps * 2 * (2 * 128 * 256 * 64)
    assert charge.work.padded_flop == steps * 2 * (2 * 128 * 256 * 128)
    assert charge.work.unknown_loops == 0
    # The scores, and once more for what earlier keys had been scaled with.
    assert charge.work.transcendental >= steps * 128 * 256
    query, key = 2 * 3 * 512 * 64 * 2, steps * 256 * 64 * 2
    assert charge.moved == (query, key, key, query)


def test_arithmetic_of_convolutions_loops_and_branches():
    def function(x, kernel):
        def body(x, _):
            return jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            ), 0

        x, _ = jax.lax.scan(body, x, None, length=5)
        flat = x.reshape(2, -1)
        return jax.lax.cond(flat[0, 0] > 0, lambda y: y @ y.T, lambda y: jnp.zeros((2, 2), y.dtype), flat)

    jaxpr = jax.make_jaxpr(function)(jnp.zeros((2, 6, 7, 3)), jnp.zeros((3, 3, 3, 3)))
    assert charges.work(jaxpr.jaxpr, 1).flop == 5 * 2 * (2 * 6 * 7) * 9 * 3 * 3 + 2 * 2 * 2 * (6 * 7 * 3)


def test_a_part_is_called_as_in_the_network():
    program = programs.dajax_program("small", "bfloat16", 2, (518, 518), "layer")
    assert [array.shape for array in program.arrays] == [(2, 1370, 384)]
    assert set(program.params["backbone"]) == {"layer_0"}
    assert program.params["backbone"]["layer_0"]["mlp"]["fc1"]["kernel"].dtype == jnp.bfloat16
    (out,) = jax.eval_shape(program.function, program.params, program.arrays)
    assert out.shape == (2, 1370, 384)


# --- the page --------------------------------------------------------------------------------------------------------


@pytest.fixture
def case(kernels):
    named = {"target": "v5e", "peer": "dajax", "size": "small", "dtype": "bfloat16", "batch": 2, "image": "14x14"}
    read = {"compile_s": 3.2, "trace_s": 0.1, "temporary_bytes": 2**30, "argument_bytes": 0, "program_bytes": 0}
    versions = {"versions": {"libtpu": "0.1", "jax": "9.8"}}
    return named | {"part": "all", "flop": 2e9} | read | versions | kernels[1].summary()


def test_figures_of_a_case_are_for_one_image(case):
    figures, total = tables.derived(case), case["total"]
    assert figures["cycles"] == pytest.approx(1790 / 2 / 1e6)
    assert figures["arithmetic"] == pytest.approx(1e9 / 197e12 * 1.5e9 / 1e6)
    assert figures["share"] == pytest.approx(figures["arithmetic"] / (figures["cycles"] + figures["charged"]))
    assert figures["both_gb"] == pytest.approx((total["bytes"] + total["charged_bytes"]) / 2 / 1e9)
    assert "estimated by the compiler" in tables.summary(case)


def test_a_difference_tells_what_changed(case):
    other = json.loads(json.dumps(case))
    other["total"]["cycles"] += 40_000
    other["parts"]["head"]["cycles"] += 40_000
    text = tables.difference(case, other)
    assert "| head | 0.000 | 0.020 | +0.020 |" in text
    assert "| neck |" not in text


def test_stored_cases_are_replaced_and_ordered(case):
    large, again = case | {"size": "large"}, case | {"compile_s": 9.9}
    results = tables.merge(tables.merge(tables.merge(None, large), case), again)
    assert [(each["size"], each["compile_s"]) for each in results["cases"]] == [("small", 9.9), ("large", 3.2)]


def test_the_page_is_what_the_stored_figures_give():
    stored = PAGE.parent / "performance" / "compiled.json"
    page = Path(__file__).parents[2] / PAGE
    results = json.loads((Path(__file__).parents[2] / stored).read_text())
    assert tables.render(results) in page.read_text()
    assert {case["target"] for case in results["cases"]} <= set(CHIPS)
