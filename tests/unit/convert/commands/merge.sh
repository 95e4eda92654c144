swift export \
    --adapters output/checkpoint-xxx \
    --merge_lora true
