"""The CPU engine: transformers' own layers, streamed, with dequantized EXL3 weights in fp32."""
