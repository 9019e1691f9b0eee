/* SPDX-License-Identifier: GPL-2.0-only */
/* bcc refuses a kernel without this; which other options the kernel has makes no difference to the probes. */
#define CONFIG_BPF_SYSCALL 1
