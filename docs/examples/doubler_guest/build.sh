#!/bin/sh
# guest.c -> guest.bin: bytes for address 0x100000, the first instruction first. Debian: apt-get install gcc
cd "$(dirname "$0")" && exec gcc -std=gnu11 -O2 -Wall -Wextra -ffreestanding -fno-pic -mno-red-zone -mgeneral-regs-only \
    -fno-stack-protector -fcf-protection=none -fno-asynchronous-unwind-tables -fno-toplevel-reorder \
    -fno-tree-loop-distribute-patterns -nostdlib -static -no-pie \
    -Wl,-N,-Ttext=0x100000,--build-id=none,--oformat=binary,-e,_start guest.c -o guest.bin
