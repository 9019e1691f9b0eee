/* SPDX-License-Identifier: GPL-2.0-only */
/* x86-64's struct pt_regs, in the order of the System V ABI's register frame (arch/x86/include/asm/ptrace.h). */
#ifndef _UAPI_LINUX_PTRACE_H
#define _UAPI_LINUX_PTRACE_H

struct pt_regs {
	unsigned long r15, r14, r13, r12;
	unsigned long bp, bx;
	unsigned long r11, r10, r9, r8;
	unsigned long ax, cx, dx, si, di;
	unsigned long orig_ax;
	unsigned long ip, cs, flags, sp, ss;
};

#endif
