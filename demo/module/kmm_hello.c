// SPDX-License-Identifier: GPL-2.0
/*
 * kmm_hello: the smallest module that behaves like a real one. It takes a parameter, reports a version,
 * and says in the kernel's log when it comes and goes.
 */
#include <linux/init.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/utsname.h>

static char *greeting = "hello";
module_param(greeting, charp, 0444);
MODULE_PARM_DESC(greeting, "what the module says when it is loaded");

static int __init kmm_hello_init(void)
{
	pr_info("kmm_hello %s: %s from %s\n", KMM_HELLO_VERSION, greeting, init_utsname()->release);
	return 0;
}

static void __exit kmm_hello_exit(void)
{
	pr_info("kmm_hello %s: goodbye\n", KMM_HELLO_VERSION);
}

module_init(kmm_hello_init);
module_exit(kmm_hello_exit);

MODULE_AUTHOR("kmm-hub");
MODULE_DESCRIPTION("Out-of-tree module of the kmm-hub demo");
MODULE_LICENSE("GPL");
MODULE_VERSION(KMM_HELLO_VERSION);
