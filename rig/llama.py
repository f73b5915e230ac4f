"""A real inference engine for tests: llama.cpp's server on a tiny model of random weights.

`python -m rig.llama FOLDER` makes the model there, serves it on a free port of loopback until it
is ended, and says `listening on URL` in one line. What the model says makes no sense; how the
engine says it is the point.
"""

import socket
import sys
import time
from pathlib import Path

import gguf
import numpy as np
import xllamacpp

_WIDTH, _HIDDEN, _HEADS = 64, 128, 4
_PIECES = [b"<unk>", b"<s>", b"</s>", *(b"<0x%02X>" % byte for byte in range(256))]
_KINDS = [2, 3, 3, *[6] * 256]  # unknown, control, control, bytes
_MATRICES = {
    "attn_q": (_WIDTH, _WIDTH),
    "attn_k": (_WIDTH, _WIDTH),
    "attn_v": (_WIDTH, _WIDTH),
    "attn_output": (_WIDTH, _WIDTH),
    "ffn_gate": (_HIDDEN, _WIDTH),
    "ffn_up": (_HIDDEN, _WIDTH),
    "ffn_down": (_WIDTH, _HIDDEN),
    "attn_norm": (_WIDTH,),
    "ffn_norm": (_WIDTH,),
}


def make_model(path: Path) -> None:
    """A llama of one layer and 259 tokens, the bytes and three marks; its weights are noise."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(_WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(_HIDDEN)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(_WIDTH // _HEADS)
    writer.add_vocab_size(len(_PIECES))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(_PIECES)
    writer.add_token_scores([0.0] * len(_PIECES))
    writer.add_token_types(_KINDS)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    shapes = {f"blk.0.{name}.weight": shape for name, shape in _MATRICES.items()}
    shapes["token_embd.weight"] = shapes["output.weight"] = (len(_PIECES), _WIDTH)
    shapes["output_norm.weight"] = (_WIDTH,)
    noise = np.random.default_rng(1)
    for name, shape in shapes.items():
        writer.add_tensor(name, (noise.standard_normal(shape) * 0.1).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def serve(model: Path) -> None:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(model)
    parameters.n_ctx = 512
    parameters.n_predict = 24
    parameters.sampling.ignore_eos = True  # else one reply in 259 is empty
    parameters.warmup = False
    with socket.create_server(("127.0.0.1", 0)) as probe:
        parameters.port = probe.getsockname()[1]
    server = xllamacpp.Server(parameters)
    print(f"listening on {server.listening_address}", flush=True)
    while True:
        time.sleep(60)


if __name__ == "__main__":
    model = Path(sys.argv[1]) / "tiny.gguf"
    make_model(model)
    serve(model)
