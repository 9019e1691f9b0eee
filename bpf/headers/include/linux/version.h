/* SPDX-License-Identifier: GPL-2.0-only */
/* bcc puts LINUX_VERSION_CODE into every program; kprobes have not needed a true one since 4.19 or so. */
#ifndef LINUX_VERSION_CODE
#define LINUX_VERSION_CODE 0
#endif
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))
